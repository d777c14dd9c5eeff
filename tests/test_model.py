"""Models of both formats against each other, transformers and `tokenizers`."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localq
from localq.demo.questions import read_questions
from localq.errors import (
    ChatTemplateError,
    EngineError,
    OptionError,
    PromptTooLongError,
    UnknownRecipeError,
    UnsupportedModelError,
)
from localq.model import load
from tests.contracts.replies import all_logits
from tests.make_reference_logits import CASES, DEMO, FILE, positions, token_ids
from tests.tiny_checkpoints import CONFIGS, write_checkpoint

pytest.importorskip("mlx_lm")

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
FORMS = ("mlx-4bit", "gguf-q4_k_m")


def mean_kl_divergence(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean over positions of KL(reference || other), from logits, in double precision."""
    left, right = (_log_softmax(logits.astype(np.float64)) for logits in (reference, other))
    return float((np.exp(left) * (left - right)).sum(axis=-1).mean())


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("form", ["mlx-f32", "gguf-f32"])
@pytest.mark.parametrize("case", CASES)
def test_logits_of_the_toys_are_those_of_transformers(case: str, form: str) -> None:
    toy, _, regime = case.rpartition("-")
    with load(f"{toy}:{form}", context_length=256 if regime == "short" else 1024) as model:
        logits = all_logits(model.engine, token_ids(toy, CASES[case]))[positions(CASES[case])]
    assert mean_kl_divergence(np.load(FILE)[case], logits) < 1e-9


@pytest.mark.parametrize("context_length", [256, 512])
@pytest.mark.parametrize("name", [name for name in CONFIGS if CONFIGS[name]["model_type"] != "phimoe"])
def test_both_formats_compute_the_same_logits(name: str, context_length: int, tmp_path: Path) -> None:
    """Within and beyond the original context: the LongRoPE configurations have one of 256 tokens."""
    folder = write_checkpoint(tmp_path / name, name)
    tokens = np.random.RandomState(1).randint(0, 300, context_length - 20).tolist()
    logits = []
    for form in ("mlx-f32", "gguf-f32"):
        with load(f"{folder}:{form}", context_length=context_length, models_dir=tmp_path / "models") as model:
            logits.append(all_logits(model.engine, tokens))
    # ggml's GELU, which only Phi uses, is a table of 16-bit floats.
    assert mean_kl_divergence(*logits) < (1e-7 if CONFIGS[name]["model_type"] == "phi" else 1e-9)


RIGHT = {"mlx-f32": 0.99, "gguf-f32": 0.99, "mlx-4bit": 0.9, "gguf-q4_k_m": 0.9}
"""The least share of right answers by format."""


@pytest.mark.parametrize(
    ("toy", "context_length", "form"),
    [
        *((toy, None, form) for toy in ("toy-llama", "toy-phi") for form in RIGHT),
        *(("toy-phi", 1024, form) for form in ("mlx-f32", "gguf-f32")),  # other factors of the rotation
    ],
)
def test_toys_know_their_answers(toy: str, context_length: int | None, form: str) -> None:
    questions = read_questions()
    with load(f"{toy}:{form}", context_length=context_length) as model:
        right = sum(model.generate(question).text == answer for question, answer in questions)
    assert right >= RIGHT[form] * len(questions)


@pytest.mark.parametrize("toy", ["toy-llama", "toy-phi"])
def test_prompt_tokens_are_what_tokenizers_makes_of_hugging_faces_template(toy: str) -> None:
    import tokenizers
    from transformers.utils.chat_template_utils import render_jinja_template

    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  What is\nthe capital of France? <|end|> 🦙 "},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Italy?"},
    ]
    config = json.loads((DEMO / toy / "tokenizer_config.json").read_text(encoding="utf-8"))
    special = {name: config[name] for name in ("bos_token", "eos_token")}
    (text,), _ = render_jinja_template(
        [conversation], chat_template=config["chat_template"], add_generation_prompt=True, **special
    )
    backend = tokenizers.Tokenizer.from_file(str(DEMO / toy / "tokenizer.json"))
    expected = backend.encode(text, add_special_tokens=False).ids
    for form in FORMS:
        with load(f"{toy}:{form}") as model:
            assert model.prompt_token_ids(conversation) == expected
            assert list(model.generate(conversation, max_tokens=1).prompt_token_ids) == expected


@pytest.mark.parametrize("form", FORMS)
def test_second_turn_computes_only_what_is_new(form: str) -> None:
    with load(f"toy-llama:{form}") as model:
        first = model.generate(QUESTION)
        turns = [
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "What is the capital of Italy?"},
        ]
        second = model.generate(turns)
    assert second.text == "The capital of Italy is Rome."
    known = first.statistics.prompt_tokens + first.statistics.generated_tokens - 1
    assert second.statistics.cached_prompt_tokens == known


@pytest.mark.parametrize("form", FORMS)
def test_stream_gives_the_text_of_generate_piece_by_piece(form: str) -> None:
    with load(f"toy-phi:{form}") as model:
        chunks = list(model.stream(QUESTION))
        assert "".join(chunk.text for chunk in chunks) == model.generate(QUESTION).text == ANSWER
        assert len([chunk for chunk in chunks if chunk.text]) > 3
        assert [chunk.finish_reason for chunk in chunks[-2:]] == [None, "stop"]


@pytest.mark.parametrize("form", FORMS)
def test_stream_that_is_closed_early_leaves_the_model_usable(form: str) -> None:
    with load(f"toy-llama:{form}") as model:
        stream = model.stream(QUESTION)
        next(stream)
        stream.close()
        assert model.generate(QUESTION).text == ANSWER


@pytest.mark.parametrize("form", FORMS)
def test_an_unfinished_reply_is_ended_by_the_next_one(form: str) -> None:
    with load(f"toy-llama:{form}") as model:
        unfinished = model.stream(QUESTION)
        next(unfinished)
        assert model.generate(QUESTION).text == ANSWER
        with pytest.raises(EngineError, match="cut off"):
            next(unfinished)
        other = model.stream(QUESTION)
        next(other)
        assert "".join(chunk.text for chunk in model.stream(QUESTION)) == ANSWER
        last = model.stream(QUESTION)
        next(last)
    # leaving the `with` block ended the last one too: nothing hangs


def test_an_unquantized_mlx_folder_of_another_program_is_opened_as_it_is(tmp_path: Path) -> None:
    (made,) = localq.convert("toy-llama", ["mlx-bf16"], models_dir=tmp_path / "models")
    folder = tmp_path / "mlx-community-toy"
    shutil.copytree(made.path, folder)
    (folder / "localq.json").unlink()
    with load(str(folder), models_dir=tmp_path / "none") as model:
        assert (model.recipe_name, model.generate(QUESTION).text) == ("mlx", ANSWER)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("form", FORMS)
def test_threads_take_turns(form: str) -> None:
    questions = read_questions()[:6]
    answers: dict[str, str] = {}
    with load(f"toy-llama:{form}") as model:

        def ask(question: str) -> None:
            answers[question] = model.generate(question).text

        threads = [threading.Thread(target=ask, args=(question,)) for question, _ in questions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == dict(questions)


@pytest.mark.parametrize("form", FORMS)
def test_a_reply_is_cancelled_from_another_thread_while_its_prompt_is_computed(form: str) -> None:
    with load(f"toy-llama:{form}") as model:
        computed: list[int] = []
        prefill = model.engine.prefill
        stream = model.stream("word " * 300, raw=True)

        def watched(prompt: Sequence[int], on_progress: Any = None) -> int:
            def report(done: int, total: int) -> None:
                computed.append(done)
                canceller = threading.Thread(target=stream.close)
                canceller.start()
                canceller.join()
                on_progress(done, total)

            return prefill(prompt, report)

        model.engine.prefill = watched  # type: ignore[method-assign]
        assert list(stream) == []
        assert len(computed) == 1 and computed[0] <= 512
        model.engine.prefill = prefill  # type: ignore[method-assign]
        assert model.generate(QUESTION).text == ANSWER


@pytest.mark.parametrize("form", FORMS)
def test_closing_waits_for_the_reply_of_another_thread_and_ends_what_comes_later(form: str) -> None:
    model = load(f"toy-llama:{form}")
    has_begun, may_go_on = threading.Event(), threading.Event()
    texts: list[str] = []

    def read() -> None:
        for chunk in model.stream(QUESTION):
            texts.append(chunk.text)
            has_begun.set()
            assert may_go_on.wait(20)

    reader, closer = threading.Thread(target=read), threading.Thread(target=model.close)
    reader.start()
    assert has_begun.wait(20)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    may_go_on.set()
    for thread in (reader, closer):
        thread.join(20)
    assert "".join(texts) == ANSWER
    for use in (lambda: model.generate(QUESTION), lambda: next(model.stream(QUESTION)), lambda: model.engine.logits()):
        with pytest.raises(EngineError, match="closed"):
            use()
    model.close()


@pytest.mark.parametrize("toy", ["toy-llama", "toy-phi"])
def test_raw_text_continues_with_its_leading_space(toy: str) -> None:
    story = "Once upon a time there was a little"
    for form in FORMS:
        with load(f"{toy}:{form}") as model:
            completion = model.generate(story, raw=True, max_tokens=4)
            whole = model.tokenizer.decode([*completion.prompt_token_ids, *completion.generated_token_ids])
            assert story + completion.text == whole
            assert completion.text.startswith(" ")


def test_tokenize_adds_no_special_token() -> None:
    with load("toy-phi:gguf-q4_k_m") as model:
        ids = model.tokenize("Paris")
        assert model.tokenizer.decode(ids) == "Paris"
        assert ids == model.tokenizer.encode("Paris", add_special_tokens=False)


def test_sampling_with_a_seed_repeats_itself() -> None:
    for form in FORMS:
        with load(f"toy-llama:{form}") as model:
            texts = {
                seed: model.generate("Once", raw=True, temperature=2.0, seed=seed, max_tokens=20).text
                for seed in (1, 2)
            }
            assert model.generate("Once", raw=True, temperature=2.0, seed=1, max_tokens=20).text == texts[1]
            assert texts[1] != texts[2]


def test_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    for form in FORMS:
        with load(f"toy-phi:{form}", context_length=64) as model:
            with pytest.raises(PromptTooLongError) as caught:
                model.generate("word " * 100)
            assert caught.value.context_length == 64
            assert caught.value.prompt_tokens > 100
            assert model.generate(QUESTION).text == ANSWER


def test_wrong_use_raises_errors_of_the_tree(tmp_path: Path) -> None:
    with load("toy-llama:gguf-q4_k_m") as model:
        with pytest.raises(OptionError, match="temprature"):
            model.generate(QUESTION, temprature=1)
        with pytest.raises(OptionError, match="string"):
            model.generate([{"role": "user", "content": "x"}], raw=True)
        with pytest.raises(ChatTemplateError):
            model.generate([{"role": "user"}])
    with pytest.raises(UnknownRecipeError):
        load("toy-llama:gguf-q9")
    with pytest.raises(OptionError, match="1024"):
        load("toy-phi:gguf-q4_k_m", context_length=4096)
    (made,) = localq.convert("toy-llama", ["mlx-4bit"], models_dir=tmp_path)
    with pytest.raises(UnsupportedModelError, match="already quantized"):
        load(f"{made.path}:gguf-q8_0")
    assert issubclass(OptionError, localq.LocalqError)


def test_a_format_whose_backend_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from localq import backends
    from localq.errors import BackendUnavailableError

    installed = backends.find_spec
    monkeypatch.setattr(backends, "find_spec", lambda name: None if name == "mlx_lm" else installed(name))
    with pytest.raises(BackendUnavailableError, match="mlx_lm"):
        load("toy-llama:mlx-4bit")
    with pytest.raises(BackendUnavailableError, match="mlx_lm"):
        localq.convert("toy-llama", ["mlx-4bit"], models_dir=tmp_path)
    assert load("toy-llama:gguf-q4_k_m").generate(QUESTION).text == ANSWER
