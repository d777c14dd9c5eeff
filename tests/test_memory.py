"""The predicted memory of a model against the runtimes' own figures."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest

from localq.checkpoint.folder import open_checkpoint
from localq.conversion.convert import convert
from localq.conversion.plan import memory_use, plan_recipe
from localq.errors import EngineError
from localq.gguf_file import GgufHeader, read_model_header
from localq.json_files import read_json
from localq.llama_log import captured_llama_log
from localq.memory import RUNTIME_BYTES, MemoryUse, gguf_file_memory, mlx_folder_memory, require_memory
from localq.model import load
from localq.options import KvCacheType, LoadOptions
from localq.recipes import parse_recipe
from tests.foreign_forms import GGUF_ARCHITECTURES, HEAD_WIDTH, KV_HEADS, LAYERS, write_gguf, write_mlx
from tests.tiny_checkpoints import write_checkpoint


def set_free_memory(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free_bytes))
    monkeypatch.setattr("localq.memory._runs_on_gpu", lambda form: False)


@pytest.mark.parametrize("name", ["llama-3", "llama-odd", "phi-2", "phi-3.5", "phi-3.5-moe"])
@pytest.mark.parametrize("recipe", ["gguf-q8_0", "gguf-f32", "mlx-4bit", "mlx-bf16"])
def test_an_artifact_takes_the_memory_that_its_plan_predicted(name: str, recipe: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", name), "model")
    told = memory_use(plan_recipe(checkpoint, parse_recipe(recipe)), checkpoint.config)
    (artifact,) = convert(checkpoint.folder, recipe, models_dir=tmp_path / "models")
    if recipe.startswith("gguf"):
        assert gguf_file_memory(read_model_header(artifact.path)) == told
    else:
        assert mlx_folder_memory(artifact.path, read_json(artifact.path / "config.json")) == told


@pytest.mark.parametrize("architecture", sorted(set(GGUF_ARCHITECTURES) - {"mamba"}))
def test_a_foreign_files_context_takes_what_llama_cpp_reserves_for_it(architecture: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", architecture, {"general.file_type": 1})
    use = gguf_file_memory(read_model_header(path))
    few, many = (reserved_bytes(path, LoadOptions(length)) for length in (65536, 131072))
    # The log rounds each buffer to 0.01 MiB; there may be a mask for a window besides the one for all tokens.
    masks = 2 if architecture == "gemma2" else 1
    assert many - few == pytest.approx((use.context_bytes_per_token + (masks - 1) * 1024) * 65536, abs=80_000)


def test_a_model_without_attention_takes_nothing_for_its_context(tmp_path: Path) -> None:
    use = gguf_file_memory(read_model_header(write_gguf(tmp_path / "model.gguf", "mamba", {"general.file_type": 1})))
    assert use.context_bytes_per_token == 512 * 2  # the mask of a chunk: the header does not state that it has none


@pytest.mark.parametrize("kv_cache_type", get_args(KvCacheType))
def test_quantized_keys_and_values_take_less(kv_cache_type: KvCacheType, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    (artifact,) = convert(folder, "gguf-q8_0", models_dir=tmp_path / "models")
    header = read_model_header(artifact.path)
    estimated, reserved = [], []
    for length in (65536, 131072):
        options = LoadOptions(length, kv_cache_type=kv_cache_type)
        estimated.append(gguf_file_memory(header, options).context_bytes_per_token * length)
        reserved.append(reserved_bytes(artifact.path, options))
    taken = reserved[1] - reserved[0]
    assert taken < estimated[1] - estimated[0] < 1.12 * taken
    assert estimated[1] < gguf_file_memory(header).context_bytes_per_token * 131072


@pytest.mark.parametrize("reproducible", [False, True])
def test_every_sequence_takes_a_context_of_its_own(reproducible: bool, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", "qwen2", {"general.file_type": 1})
    header = read_model_header(path)
    for sequences in (1, 4):
        options = [LoadOptions(length, sequences=sequences, reproducible=reproducible) for length in (32768, 65536)]
        few, many = (reserved_bytes(path, each) for each in options)
        estimated = gguf_file_memory(header, options[0]).context_bytes_per_token * 32768
        assert many - few == pytest.approx(estimated, abs=80_000)


def test_too_many_sequences_are_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (artifact,) = convert(write_checkpoint(tmp_path / "model", "code-llama"), "gguf-q8_0", models_dir=tmp_path / "made")
    use = gguf_file_memory(read_model_header(artifact.path), LoadOptions(sequences=2))
    set_free_memory(monkeypatch, RUNTIME_BYTES + use.weight_bytes + 512 * use.context_bytes_per_token)
    load(str(artifact.folder), context_length=512, sequences=2).close()
    with pytest.raises(EngineError, match=r"with 3 contexts of 512 tokens needs about .* for the context"):
        load(str(artifact.folder), context_length=512, sequences=3)


def reserved_bytes(path: Path, options: LoadOptions) -> float:
    """The sizes of the buffers for a context, from llama.cpp's log."""
    from localq.engines.llamacpp import open_engine

    with captured_llama_log() as log:
        open_engine(path, options, options.context_length or 512).close()
    sizes = re.findall(r"(?:KV|compute) buffer size = +([\d.]+) MiB", "".join(log))
    assert len(sizes) >= 2
    return sum(map(float, sizes)) * 2**20


def test_layers_may_have_different_numbers_of_heads() -> None:
    metadata = {
        "general.architecture": "x",
        "x.block_count": 3,
        "x.embedding_length": 128,
        "x.attention.head_count": 4,
        "x.attention.head_count_kv": [4, 0, 2],
    }
    use = gguf_file_memory(GgufHeader(Path("x"), metadata, {"a": 1000}, 1000))
    assert use == MemoryUse(1000, 0, 6 * (32 + 32) * 2 + 512 * 2)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("model_type", ["qwen2", "gemma3"])
def test_a_foreign_mlx_folder_takes_the_bytes_of_its_arrays(model_type: str, bits: int | None, tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    from mlx.utils import tree_flatten

    folder = write_mlx(tmp_path / "model", model_type, bits)
    with load(folder) as model:
        arrays = [array for _, array in tree_flatten(model.engine._model.parameters())]  # type: ignore[attr-defined]
        config = read_json(folder / "config.json")
        use = mlx_folder_memory(folder, {**config, **config.get("text_config", {})})
        assert use.weight_bytes == sum(array.nbytes for array in arrays)
    assert use.context_bytes_per_token in {LAYERS * KV_HEADS * HEAD_WIDTH * 2 * size for size in (2, 4)}


@pytest.mark.parametrize("form", ["gguf-q8_0", "mlx-4bit"])
def test_what_does_not_fit_is_refused_with_a_context_that_does(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "model", "code-llama")
    (artifact,) = convert(folder, form, models_dir=tmp_path / "models")
    reference = str(artifact.folder)
    use = (
        gguf_file_memory(read_model_header(artifact.path))
        if form.startswith("gguf")
        else mlx_folder_memory(artifact.path, read_json(artifact.path / "config.json"))
    )
    set_free_memory(monkeypatch, RUNTIME_BYTES + use.weight_bytes + 5000 * use.context_bytes_per_token)
    with pytest.raises(EngineError, match=r"a context of 16,384 tokens needs about [\d.]+ MB of memory \(") as caught:
        load(reference, context_length=16384)
    assert "are free" in caught.value.message and "LOCALQ_IGNORE_MEMORY=1" in caught.value.hint
    advised = re.search(r"-c (\d+) would fit", caught.value.hint)
    assert advised is not None and advised[1] == "4864"
    load(reference, context_length=int(advised[1])).close()
    monkeypatch.setenv("LOCALQ_IGNORE_MEMORY", "1")
    load(reference, context_length=16384).close()


def test_weights_that_do_not_fit_are_refused_without_a_context_to_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "model.gguf", "qwen2")
    set_free_memory(monkeypatch, RUNTIME_BYTES)
    with pytest.raises(EngineError, match="model.gguf with a context of 300 tokens") as caught:
        load(path)
    assert "-c" not in caught.value.hint and "smaller form" in caught.value.hint


def test_the_last_byte_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    use = MemoryUse(weight_bytes=10_000, loading_bytes=700, context_bytes_per_token=1)
    for context_length, free_bytes in ((1000, 11_000), (500, 10_700)):
        set_free_memory(monkeypatch, RUNTIME_BYTES + free_bytes)
        require_memory("model", "gguf", use, context_length)
        assert use.needed_bytes(context_length) == RUNTIME_BYTES + free_bytes
        with pytest.raises(EngineError):
            require_memory("model", "gguf", use, context_length, others_bytes=1)
        set_free_memory(monkeypatch, RUNTIME_BYTES + free_bytes - 1)
        with pytest.raises(EngineError):
            require_memory("model", "gguf", use, context_length)
