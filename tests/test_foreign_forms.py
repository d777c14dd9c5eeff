"""Files and folders that localq did not make, of families that it does not convert: run as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from localq.demo.questions import read_held_out_text
from localq.errors import ChatTemplateError, CheckpointError, OptionError
from localq.measure.forms import find_forms
from localq.measure.quality import EvalSettings, evaluate
from localq.measure.reports import BenchSettings
from localq.measure.speed import bench_forms
from localq.model import Model, load
from tests.contracts.replies import all_logits
from tests.foreign_forms import CONTEXT_LENGTH, GGUF_ARCHITECTURES, MLX_CONFIGS, TEMPLATE, write_gguf, write_mlx
from tests.tiny_tokenizers import byte_level_backend

QUESTION = "the quick brown fox"


def check_talks(model: Model) -> None:
    """Own tokenizer, own template, own end tokens, own context, and a second turn that changes nothing."""
    backend = byte_level_backend()
    expected = backend.encode(f"<user>{QUESTION}<bot>", add_special_tokens=False).ids
    first = model.generate(QUESTION, max_tokens=12)
    assert list(first.prompt_token_ids) == expected
    raw = model.generate(QUESTION, raw=True, max_tokens=1)
    assert list(raw.prompt_token_ids) == backend.encode(QUESTION, add_special_tokens=True).ids
    assert model.generate(QUESTION, max_tokens=12).generated_token_ids == first.generated_token_ids
    assert model.tokenizer.decode(expected) == f"<user>{QUESTION}<bot>"
    names = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>")
    assert model.end_tokens == {backend.token_to_id(name) for name in names}
    assert model.context_length == CONTEXT_LENGTH


@pytest.mark.parametrize("architecture", GGUF_ARCHITECTURES)
def test_a_gguf_file_of_any_architecture_runs_with_its_own_tokenizer_and_template(
    architecture: str, tmp_path: Path
) -> None:
    with load(write_gguf(tmp_path / "Some-Model-F32.gguf", architecture)) as model:
        assert (model.name, model.recipe_name) == ("Some-Model-F32", "gguf")
        check_talks(model)


@pytest.mark.parametrize("architecture", GGUF_ARCHITECTURES)
def test_a_second_turn_is_answered_as_by_a_fresh_model(architecture: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", architecture)
    with load(path) as used, load(path) as fresh:
        used.generate(QUESTION + " jumps", max_tokens=8)
        answers = [model.generate(QUESTION + " over", max_tokens=8).generated_token_ids for model in (used, fresh)]
    assert answers[0] == answers[1]


def test_a_split_model_is_given_by_its_first_part(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", "qwen2")
    first = write_gguf(tmp_path / "split.gguf", "qwen2", tensors_per_part=10)
    assert first.name == "split-00001-of-00003.gguf"
    tokens = list(range(40))
    with load(whole) as one, load(first) as other:
        assert np.array_equal(all_logits(one.engine, tokens), all_logits(other.engine, tokens))
        check_talks(other)
        assert other.name == "split"
    (form,) = find_forms([str(first)])
    assert (form.model, form.recipe) == ("split", "gguf")
    assert form.artifact_bytes == sum(part.stat().st_size for part in tmp_path.glob("split-*"))


def test_a_part_that_is_missing_renamed_or_not_the_first_is_named(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "split.gguf", "qwen2", tensors_per_part=10)
    second = first.with_name("split-00002-of-00003.gguf")
    with pytest.raises(CheckpointError, match="part 2 of 3") as caught:
        load(second)
    assert first.name in caught.value.hint
    renamed = tmp_path / "renamed.gguf"
    renamed.write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="its name does not say so"):
        load(renamed)
    content = second.read_bytes()
    second.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.gguf is cut off"):
        load(first)
    second.unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00003\.gguf is missing"):
        load(first)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.type": "adapter"}, "a LoRA adapter"),
        ({"general.type": "imatrix"}, "an importance matrix"),
        ({"general.type": "mmproj"}, "reads pictures"),
        ({"general.type": "future"}, "of the type 'future'"),
        ({"llama.attention.causal": False}, "token by token"),
    ],
)
def test_a_gguf_file_that_does_not_generate_text_is_refused_with_what_it_is(
    metadata: dict[str, str], words: str, tmp_path: Path
) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", metadata)
    with pytest.raises(CheckpointError, match=f"model.gguf is .*{words}") as caught:
        load(path)
    assert caught.value.hint


@pytest.mark.parametrize("length", [0, 3, 4, 20, 200, 5000, -1])
def test_a_truncated_gguf_file_is_refused(length: int, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"model\.gguf is (damaged|cut off)") as caught:
        load(path)
    assert "\n" not in caught.value.message and caught.value.hint.startswith("download the file again")


def test_an_architecture_that_llama_cpp_does_not_know_is_named(tmp_path: Path) -> None:
    from localq.errors import EngineError

    with pytest.raises(EngineError, match="nonsense"):
        load(write_gguf(tmp_path / "model.gguf", "nonsense"))


def test_a_longer_context_than_the_file_allows_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "qwen2")
    with pytest.raises(OptionError, match=str(CONTEXT_LENGTH)):
        load(path, context_length=CONTEXT_LENGTH + 1)


def test_a_stretched_context_is_by_default_as_long_as_the_original_one(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "llama", {"llama.rope.scaling.original_context_length": 128})
    with load(path) as model:
        assert model.context_length == 128
    with load(path, context_length=256) as model:
        assert model.context_length == 256


def test_a_named_chat_template_is_taken_where_it_is_the_only_one(tmp_path: Path) -> None:
    only = {"tokenizer.chat_template": None, "tokenizer.chat_template.tool_use": TEMPLATE}
    with load(write_gguf(tmp_path / "only.gguf", "llama", only)) as model:
        check_talks(model)
    beside = {"tokenizer.chat_template.rag": "something else"}
    with load(write_gguf(tmp_path / "beside.gguf", "llama", beside)) as model:
        check_talks(model)
    several = {**only, "tokenizer.chat_template.rag": "something else"}
    with pytest.raises(ChatTemplateError, match="rag, tool_use"):
        load(write_gguf(tmp_path / "several.gguf", "llama", several))


def test_a_gguf_file_without_a_chat_template_continues_text(tmp_path: Path) -> None:
    with load(write_gguf(tmp_path / "base.gguf", "llama", {"tokenizer.chat_template": None})) as model:
        with pytest.raises(ChatTemplateError, match="no chat template"):
            model.generate(QUESTION)
        assert model.generate(QUESTION, raw=True, max_tokens=3).generated_token_ids


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("model_type", MLX_CONFIGS)
def test_an_mlx_folder_of_any_model_runs_with_its_own_tokenizer_and_template(
    model_type: str, bits: int | None, tmp_path: Path
) -> None:
    pytest.importorskip("mlx_lm")
    folder = write_mlx(tmp_path / "Some-Model", model_type, bits)
    with load(folder) as model:
        assert (model.name, model.recipe_name) == ("Some-Model", "mlx")
        check_talks(model)
    with pytest.raises(OptionError, match=str(CONTEXT_LENGTH)):
        load(folder, context_length=CONTEXT_LENGTH + 1)


@pytest.mark.parametrize("bits", [None, 4])
def test_an_mlx_folder_whose_text_config_is_null_runs_and_is_measured(bits: int | None, tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    folder = write_mlx(tmp_path / "Some-Model", "qwen2", bits)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "text_config": None}))
    with load(folder) as model:
        check_talks(model)
    settings = BenchSettings(prompt_tokens=(4,), generated_tokens=(4,), repetitions=1)
    (speed,) = bench_forms(find_forms([str(folder)]), settings).results
    assert [test.tokens_per_second.median > 0 for test in speed.tests] == [True, True]
    text = tmp_path / "text.txt"
    text.write_text(read_held_out_text(), encoding="utf-8")
    report = evaluate([str(folder)], EvalSettings(str(folder), text, window_tokens=32, most_windows=1), tmp_path)
    assert report.results[0].mean_kl_divergence == 0
