"""GGUF conversion against llama.cpp's own converter (digests) and its own quantizer (run here)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localq.conversion.convert import convert, dry_run, make_forms
from localq.conversion.plan import Request
from localq.errors import ConversionError
from localq.recipes import RECIPES, GgufRecipe
from localq.store.manifest import Artifact
from tests.conversion.llama_quantize import quantize
from tests.conversion.make_converter_digests import DTYPES, FILE, describe
from tests.gguf_file import tensor_data
from tests.tiny_checkpoints import CONFIGS, write_checkpoint, write_weights

DIGESTS: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
SOURCE_RECIPES = {"BF16": "gguf-bf16", "F16": "gguf-f16", "F32": "gguf-f32"}
GGUF_RECIPES = [recipe for recipe in RECIPES.values() if isinstance(recipe, GgufRecipe) and not recipe.calibrated]
WITH_FALLBACK = [recipe for recipe in GGUF_RECIPES if recipe.file_type != "Q1_0"]


def make(folder: Path, recipe: str, models: Path) -> Path:
    return convert(str(folder), [recipe], models_dir=models)[0].path


@pytest.mark.parametrize("name", CONFIGS)
def test_unquantized_file_equals_what_llama_cpps_converter_writes(name: str, tmp_path: Path) -> None:
    dtype = DTYPES.get(name, "BF16")
    folder = write_checkpoint(tmp_path / name, name, dtype=dtype)
    made = describe(make(folder, SOURCE_RECIPES[dtype], tmp_path / "models"))
    assert list(made["tensors"].items()) == list(DIGESTS[name]["tensors"].items())
    described = [(key, value) for key, value in made["metadata"].items() if not key.startswith("tokenizer.")]
    assert without_phi_3_mark(described) == list(DIGESTS[name]["metadata"].items())


@pytest.mark.parametrize("name", ["toy-llama", "toy-phi"])
def test_metadata_of_the_toys_equals_what_llama_cpps_converter_writes(name: str, tmp_path: Path) -> None:
    made = describe(make(Path(name), "gguf-bf16", tmp_path))
    assert list(made["tensors"].items()) == list(DIGESTS[name]["tensors"].items())
    assert without_phi_3_mark(made["metadata"].items()) == list(DIGESTS[name]["metadata"].items())


def without_phi_3_mark(metadata: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The only difference from the converter, which loses this trait of the tokenizer: see `name_for_llama_cpp`."""
    marked = re.compile(r" \(Phi-3\)$")
    return [(key, marked.sub("", value) if key == "general.name" else value) for key, value in metadata]


def assert_equal_to_llama_quantizes(
    folder: Path, scratch: Path, recipes: Sequence[GgufRecipe] = GGUF_RECIPES
) -> dict[str, Artifact]:
    source = make(folder, "gguf-bf16", scratch / "source")
    made = {artifact.recipe.name: artifact for artifact in convert(str(folder), recipes, models_dir=scratch)}
    for recipe in recipes:
        assert quantize(source, scratch / "expected.gguf", recipe.file_type_number) == ""
        assert tensor_data(made[recipe.name].path) == tensor_data(scratch / "expected.gguf"), recipe.name
        if recipe.name not in SOURCE_RECIPES.values():  # those are the converter's, in its order
            assert made[recipe.name].path.read_bytes() == (scratch / "expected.gguf").read_bytes(), recipe.name
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_every_file_type_equals_what_llama_quantize_makes(name: str, tmp_path: Path) -> None:
    """Every type for one model of each kind of network; for the others those whose mixes differ between models."""
    recipes = WITH_FALLBACK if CONFIGS[name]["hidden_size"] % 128 else GGUF_RECIPES
    if name not in ("llama-2", "llama-3.2", "llama-odd", "phi-2", "phi-3.5", "phi-3.5-moe"):
        recipes = [recipe for recipe in recipes if recipe.file_type in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "IQ3_M")]
    assert_equal_to_llama_quantizes(write_checkpoint(tmp_path / name, name), tmp_path, recipes)


def test_rows_that_fit_no_block_fall_back_as_in_llama_quantize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 320 and 544 are multiples of 32 and not of 256, so K-quants don't fit.
    monkeypatch.setitem(CONFIGS, "odd", {**CONFIGS["llama-3"], "hidden_size": 320, "intermediate_size": 544})
    made = assert_equal_to_llama_quantizes(write_checkpoint(tmp_path / "odd", "odd"), tmp_path, WITH_FALLBACK)
    q4_k_m = made["gguf-q4_k_m"]
    assert {kind for kind, _ in tensor_data(q4_k_m.path).values()} == {"f32", "q5_0", "q8_0"}
    fallbacks = {item.tensor: (item.wanted, item.used) for item in q4_k_m.manifest.fallbacks}
    assert fallbacks.keys() == {name for name, (kind, _) in tensor_data(q4_k_m.path).items() if kind != "f32"}
    assert fallbacks["output.weight"] == ("q6_K", "q8_0")
    assert fallbacks["blk.0.attn_q.weight"] == ("q4_K", "q5_0")
    assert not made["gguf-q8_0"].manifest.fallbacks


def test_rows_that_fit_no_block_at_all_are_kept_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "odd", {**CONFIGS["llama-3"], "hidden_size": 80, "intermediate_size": 112})
    made = assert_equal_to_llama_quantizes(write_checkpoint(tmp_path / "odd", "odd"), tmp_path, WITH_FALLBACK)
    fallbacks = {item.tensor: (item.wanted, item.used) for item in made["gguf-q4_0"].manifest.fallbacks}
    assert fallbacks["blk.1.ffn_down.weight"] == ("q4_0", "f16")
    assert fallbacks["output.weight"] == ("q8_0", "f16")


def test_a_file_type_without_fallback_is_refused_with_llama_cpps_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "odd", {**CONFIGS["llama-3"], "hidden_size": 320, "intermediate_size": 544})
    folder = write_checkpoint(tmp_path / "odd", "odd")
    with pytest.raises(ConversionError, match="no tensor type fallback is defined for type q1_0"):
        dry_run(Request(str(folder), ["gguf-q1_0"], models_dir=tmp_path))


def test_shards_and_single_file_give_the_same_bytes(tmp_path: Path) -> None:
    single = write_checkpoint(tmp_path / "a" / "model", "llama-3.2")
    sharded = write_checkpoint(tmp_path / "b" / "model", "llama-3.2", shards=3)
    without_index = write_checkpoint(tmp_path / "c" / "model", "llama-3.2", shards=3)
    (without_index / "model.safetensors.index.json").unlink()
    files = [
        make(folder, "gguf-q4_k_m", folder.parent / "models").read_bytes()
        for folder in (single, sharded, without_index)
    ]
    assert files[0] == files[1] == files[2]


def test_checkpoint_of_mixed_dtypes_converts_each_tensor_from_its_own(tmp_path: Path) -> None:
    from tests.tiny_checkpoints import random_tensors, write_safetensors

    whole = write_checkpoint(tmp_path / "whole" / "model", "llama-3")
    mixed = write_checkpoint(tmp_path / "mixed" / "model", "llama-3")
    (mixed / "model.safetensors").unlink()
    tensors = random_tensors(CONFIGS["llama-3"])
    for number, dtype in enumerate(("F32", "F16", "BF16"), 1):
        part = {name: value for index, (name, value) in enumerate(tensors.items()) if index % 3 == number - 1}
        write_safetensors(mixed / f"model-{number:05d}-of-00003.safetensors", part, dtype)
    made = [make(folder, "gguf-q4_k_m", folder.parent / "models").read_bytes() for folder in (whole, mixed)]
    assert made[0] == made[1]  # the values are such that every dtype holds them exactly


def test_planned_size_is_the_size_that_is_written(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "phi-4-mini")
    for recipe in ("gguf-q4_k_m", "gguf-q8_0", "mlx-4bit", "mlx-f32"):
        (planned,) = dry_run(Request(str(folder), [recipe]))
        (made,) = convert(str(folder), [recipe], models_dir=tmp_path / "models")
        manifest = made.manifest
        assert planned.weight_bytes == manifest.weight_bytes
        header = manifest.bytes - manifest.weight_bytes
        assert 0 < header < 200_000
        assert planned.bits_per_weight == manifest.bits_per_weight


def test_tokenizer_without_its_sentencepiece_model_splits_in_the_same_way(tmp_path: Path) -> None:
    """Fine-tunes are often saved with tokenizer.json alone; llama.cpp must split text as `tokenizers` does."""
    from localq.text.gguf_tokenizer import load_gguf_tokenizer
    from localq.text.tokenizer import load_tokenizer

    folder = write_checkpoint(tmp_path / "model", "llama-2")
    assert not (folder / "tokenizer.model").exists()
    own = load_tokenizer(folder)
    theirs = load_gguf_tokenizer(make(folder, "gguf-q8_0", tmp_path / "models"))
    for text in ("the quick brown fox jumps", "  two  spaces", "Zwölf Boxkämpfer 日本", "<|user|> hi <|end|>"):
        assert theirs.encode(text, add_special_tokens=False) == own.encode(text, add_special_tokens=False)


def test_memory_is_bounded_by_pieces_and_not_by_the_tensor() -> None:
    from localq.checkpoint.tensors import PIECE_ELEMENTS, row_ranges

    for rows, columns, multiple in ((128256, 2048, 1), (4096, 4096, 128), (7, 3, 7), (1, 10_000_000, 1)):
        ranges = list(row_ranges(rows, columns, multiple))
        assert [start for start, _ in ranges] == [0, *[stop for _, stop in ranges[:-1]]]
        assert ranges[-1][1] == rows
        assert all((stop - start) * columns <= max(PIECE_ELEMENTS, columns * multiple) for start, stop in ranges)
        assert all(start % multiple == 0 for start, _ in ranges)


def test_changed_weights_are_converted_again(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    request = Request(folder, ["gguf-q8_0"], tmp_path / "models")
    first, again = (make_forms(request)[0] for _ in range(2))
    assert again.reused and again.artifact == first.artifact
    write_weights(folder, {k: np.zeros_like(v) for k, v in _tensors("llama-3").items()}, "BF16", 1)
    (changed,) = make_forms(request)
    assert not changed.reused
    assert changed.artifact.manifest.revision != first.artifact.manifest.revision


def _tensors(name: str) -> dict[str, np.ndarray]:
    from tests.tiny_checkpoints import random_tensors

    return random_tensors(CONFIGS[name])


@pytest.mark.parametrize("toy", ["toy-llama", "toy-phi"])
def test_llama_cpp_splits_a_chat_as_localq_does(toy: str, tmp_path: Path) -> None:
    """Phi-3 removes white space after its special tokens; llama.cpp knows that only from the name of the model."""
    from localq.text.chat_template import load_chat_template
    from localq.text.gguf_tokenizer import load_gguf_tokenizer
    from localq.text.tokenizer import load_tokenizer

    file = make(Path(toy), "gguf-q8_0", tmp_path)
    template = load_chat_template(file.parent)
    assert template is not None
    messages = [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "\n Hi  there "}]
    text = template.render(messages)
    own = load_tokenizer(file.parent).encode(text, add_special_tokens=False)
    assert load_gguf_tokenizer(file).encode(text, add_special_tokens=False) == own
