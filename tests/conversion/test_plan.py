"""What a planned form takes in memory, against the formula, the files and the runtimes' own buffers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from localq.checkpoint.folder import open_checkpoint
from localq.conversion import plan as plans
from localq.conversion.convert import convert
from localq.conversion.plan import memory_use, plan_recipe
from localq.conversion.plan_mlx import MlxPlan
from localq.engines.base import PREFILL_CHUNK_TOKENS
from localq.memory import RUNTIME_BYTES, MemoryUse
from localq.recipes import parse_recipe
from tests.tiny_checkpoints import CONFIGS, write_checkpoint

KV_BYTES = 2 * 2 * 2 * 64 * 2  # keys and values of 2 layers with 2 heads of 64 in half precision
MLX_ON_GPU = {"mlx-4bit": KV_BYTES, "mlx-bf16": KV_BYTES, "mlx-f32": 2 * KV_BYTES}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model", "llama-3")


def use_of(folder: Path, recipe: str) -> MemoryUse:
    checkpoint = open_checkpoint(folder, "model")
    return memory_use(plan_recipe(checkpoint, parse_recipe(recipe)), checkpoint.config)


def test_the_longest_context_is_what_is_left_of_the_free_memory() -> None:
    use = MemoryUse(weight_bytes=1_000_000, loading_bytes=5_000, context_bytes_per_token=100)
    taken = 1_000_000 + RUNTIME_BYTES
    assert use.longest_context_tokens(taken + 5_000, 10_000) == 50
    assert use.longest_context_tokens(taken + 5_099, 10_000) == 50
    assert use.longest_context_tokens(taken + 5_100, 10_000) == 51
    assert use.longest_context_tokens(taken + 2_000_000, 10_000) == 10_000
    assert use.longest_context_tokens(taken + 4_999, 10_000) == 0  # it could not even be loaded
    assert use.longest_context_tokens(0, 10_000) == 0


@pytest.mark.parametrize("recipe", ["mlx-4bit", "mlx-mixed-3-6", "mlx-mxfp4", "mlx-bf16", "mlx-f16", "mlx-f32"])
def test_mlx_on_the_cpu_takes_the_bytes_of_its_arrays_in_single_precision(
    folder: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.utils import load_model

    monkeypatch.setattr(plans, "_mlx_runs_on_gpu", lambda: False)
    (artifact,) = convert(folder, recipe, models_dir=folder.parent / "models")
    model, _ = load_model(artifact.folder, lazy=True)
    model.set_dtype(mx.float32)  # as localq.engines.mlx does
    checkpoint = open_checkpoint(folder, "model")
    plan = plan_recipe(checkpoint, parse_recipe(recipe))
    assert isinstance(plan, MlxPlan)
    use = memory_use(plan, checkpoint.config)
    assert use.weight_bytes == sum(array.nbytes for _, array in tree_flatten(model.parameters()))
    assert use.context_bytes_per_token == 2 * KV_BYTES
    largest = {"mlx-f32": 0, "mlx-bf16": 768 * 256 * 2, "mlx-f16": 768 * 256 * 2}
    assert use.loading_bytes == largest.get(recipe, use.loading_bytes)


@pytest.mark.parametrize(("recipe", "context_bytes"), MLX_ON_GPU.items())
def test_mlx_on_a_gpu_takes_what_is_on_disk(
    folder: Path, recipe: str, context_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "_mlx_runs_on_gpu", lambda: True)
    (artifact,) = convert(folder, recipe, models_dir=folder.parent / "models")
    assert use_of(folder, recipe) == MemoryUse(artifact.manifest.weight_bytes, 0, context_bytes)


@pytest.mark.parametrize("recipe", ["gguf-q8_0", "gguf-bf16", "gguf-f32"])
def test_a_gguf_context_takes_what_llama_cpp_reserves_for_it(folder: Path, recipe: str) -> None:
    (artifact,) = convert(folder, recipe, models_dir=folder.parent / "models")
    use = use_of(folder, recipe)
    assert use.weight_bytes == artifact.manifest.weight_bytes
    few, many = (reserved_bytes(artifact.path, length) for length in (65536, 131072))
    # The log rounds each buffer to a hundredth of a MiB.
    assert use.context_bytes_per_token * 65536 == pytest.approx(many - few, abs=40_000)


def reserved_bytes(path: Path, context_length: int) -> float:
    """What llama.cpp says of the buffers that it makes for a context."""
    from localq.engines.llamacpp import open_engine
    from localq.llama_log import captured_llama_log
    from localq.options import LoadOptions

    with captured_llama_log() as log:
        open_engine(path, LoadOptions(threads=1), context_length).close()
    sizes = re.findall(r"(?:KV|compute) buffer size = +([\d.]+) MiB", "".join(log))
    assert len(sizes) >= 2
    return sum(map(float, sizes)) * 2**20


def test_the_figures_above_are_those_of_the_checkpoint(folder: Path) -> None:
    assert open_checkpoint(folder, "model").config.kv_cache_bytes_per_token == KV_BYTES
    assert CONFIGS["llama-3"]["torch_dtype"] == "bfloat16" and PREFILL_CHUNK_TOKENS > 0
