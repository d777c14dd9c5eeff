from __future__ import annotations

import os
import site
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from localq.engines.scripted import ScriptedEngine
from localq.errors import EngineError
from localq.measure.forms import Form
from localq.measure.process import WorkerProcess, _environment
from localq.measure.worker import MeasuredModel, Worker, plain_token_ids, random_prompt
from localq.options import GenerationOptions, LoadOptions
from localq.text.tokenizer import load_tokenizer

_OPTIONS = LoadOptions(context_length=128, threads=1)


def _measured_with(engine: ScriptedEngine, form: Form, monkeypatch: pytest.MonkeyPatch) -> MeasuredModel:
    monkeypatch.setattr("localq.model._open_engine", lambda *_: engine)
    return MeasuredModel(form.path, _OPTIONS)


class _RecordingEngine(ScriptedEngine):
    """Remembers how much of each prompt came from the cache, and the options of each generation."""

    def __init__(self, replies: Sequence[Sequence[int]]) -> None:
        super().__init__(replies, vocabulary_size=768)
        self.reused: list[int] = []
        self.options: list[GenerationOptions] = []

    def prefill(self, prompt: Sequence[int], on_progress: Any = None) -> int:
        self.reused.append(super().prefill(prompt, on_progress))
        return self.reused[-1]

    def generate(self, options: GenerationOptions) -> Generator[int, None, None]:
        self.options.append(options)
        return super().generate(options)


def test_both_forms_are_given_the_same_prompts(forms: list[Form]) -> None:
    mlx, gguf = (plain_token_ids(load_tokenizer(form.path)) for form in forms)
    assert mlx == gguf
    for run in range(4):
        assert random_prompt(mlx, 40, run) == random_prompt(gguf, 40, run)


def test_a_prompt_holds_no_added_token(forms: list[Form]) -> None:
    tokenizer = load_tokenizer(forms[0].path)
    plain = plain_token_ids(tokenizer)
    assert tokenizer.added_tokens
    assert sorted([*plain, *tokenizer.added_tokens.values()]) == list(range(tokenizer.vocabulary_size))
    assert set(random_prompt(plain, 500, run=3)) <= set(plain)


def test_a_prompt_is_repeatable_and_as_long_as_asked_for() -> None:
    assert random_prompt(range(100), 5, run=7) == random_prompt(range(100), 5, run=7)
    assert [len(random_prompt(range(100), count, run=1)) for count in (1, 2, 300)] == [1, 2, 300]


def test_following_prompts_share_no_prefix() -> None:
    prompts = [random_prompt(range(100), 5, run) for run in range(250)]
    assert all(one[0] != next_one[0] for one, next_one in zip(prompts, prompts[1:], strict=False))


def test_nothing_is_taken_from_the_cache(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _RecordingEngine([[1, 2]] * 6)
    measured = _measured_with(engine, forms[0], monkeypatch)
    for run in range(6):
        measured.measure(run, prompt_tokens=30, generated_tokens=2)
    assert engine.reused == [0] * 6
    assert [len(prompt) for prompt in engine.prompts] == [30] * 6
    assert len({tuple(prompt) for prompt in engine.prompts}) == 6


def test_generation_is_greedy_and_goes_on_after_end_tokens(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    end_token = load_tokenizer(forms[0].path).added_tokens["<|end_of_text|>"]
    engine = _RecordingEngine([[end_token] * 10])
    statistics = _measured_with(engine, forms[0], monkeypatch).measure(0, prompt_tokens=3, generated_tokens=10)
    assert statistics.generated_tokens == 10
    assert engine.options == [GenerationOptions(max_tokens=10)]
    assert engine.options[0].temperature == 0


def test_a_generation_that_ends_early_is_an_error(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = _measured_with(_RecordingEngine([[5, 6, 7]]), forms[0], monkeypatch)
    with pytest.raises(EngineError, match="3 tokens came instead of 4"):
        measured.measure(0, prompt_tokens=3, generated_tokens=4)


@pytest.mark.parametrize("index", [0, 1], ids=["mlx", "gguf"])
def test_a_real_form_is_measured(forms: list[Form], index: int) -> None:
    measured = MeasuredModel(forms[index].path, LoadOptions(context_length=128))
    statistics = measured.measure(0, prompt_tokens=20, generated_tokens=5)
    measured.model.close()
    assert (statistics.prompt_tokens, statistics.cached_prompt_tokens, statistics.generated_tokens) == (20, 0, 5)
    assert statistics.generated_tokens_per_second == 4 / statistics.decode_seconds
    assert measured.model.context_length == 128


def test_a_foreign_gguf_file_is_measured(forms: list[Form]) -> None:
    measured = MeasuredModel(next(forms[1].path.glob("*.gguf")), _OPTIONS)
    assert measured.measure(0, prompt_tokens=4, generated_tokens=2).generated_tokens == 2
    measured.model.close()


def test_an_error_becomes_an_answer_with_message_and_hint(forms: list[Form]) -> None:
    answer = Worker().answer({"command": "load", "path": str(forms[0].path), "context_length": 600, "threads": 1})
    assert answer == {
        "error": "a context of 600 tokens is more than the model's 512",
        "hint": "measure fewer tokens with -p and -g, or give a smaller context with -c",
    }


def test_a_worker_process_does_not_need_localq_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with WorkerProcess("a form") as worker:
        assert worker.ask("peak_memory")["peak_memory_bytes"] > 1 << 20


def test_a_folder_of_installed_packages_is_not_put_before_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/the/user")
    assert _environment(tmp_path)["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/of/the/user"
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path)])
    assert _environment(tmp_path)["PYTHONPATH"] == "/of/the/user"
    monkeypatch.delenv("PYTHONPATH")
    assert "PYTHONPATH" not in _environment(tmp_path)
