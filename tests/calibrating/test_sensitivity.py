"""The divergence of a coarse tensor, against a checkpoint whose tensor was really changed and converted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from localq.calibrating.columns import ColumnSums
from localq.calibrating.sensitivity import CoarseTensor, Predictions, coarse_change, kl_divergence
from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.tensors import to_float32
from localq.conversion.convert import convert
from localq.conversion.pieces import worker_pool
from localq.engines.llamacpp import open_engine
from localq.engines.llamacpp_observer import ObservedEngine
from localq.measure.divergence import compare_rows
from localq.options import LoadOptions
from localq.store.manifest import Artifact
from tests.tiny_checkpoints import CONFIGS, random_tensors, write_weights

TOKENS = [number * 37 % 700 for number in range(64)]
Measured = Callable[[str], tuple[Checkpoint, Artifact]]


def logits_of(path: Path) -> np.ndarray:
    with closing(open_engine(path, LoadOptions(), 64)) as engine:
        return np.concatenate(list(engine.logits_in_chunks(TOKENS)))


@pytest.mark.parametrize(
    ("name", "gguf_name", "sources"),
    [
        ("llama-3.2", "blk.0.attn_q.weight", ["model.layers.0.self_attn.q_proj.weight"]),  # rows change order
        ("llama-3.2", "token_embd.weight", ["model.embed_tokens.weight"]),  # tied: looked up, and multiplied with
        ("llama-3", "token_embd.weight", ["model.embed_tokens.weight"]),
        ("llama-3", "output.weight", ["lm_head.weight"]),
        ("phi-3-4k", "blk.1.attn_qkv.weight", ["model.layers.1.self_attn.qkv_proj.weight"]),
        ("phi-1.5", "blk.1.ffn_down.weight", ["model.layers.1.mlp.fc2.weight"]),  # with a bias
        (
            "phi-3.5-moe",
            "blk.0.ffn_down_exps.weight",
            [f"model.layers.0.block_sparse_moe.experts.{expert}.w2.weight" for expert in range(4)],
        ),
    ],
)
def test_the_divergence_is_that_of_really_changed_weights(
    measured: Measured, tmp_path: Path, name: str, gguf_name: str, sources: list[str]
) -> None:
    checkpoint, artifact = measured(name)
    layout = next(layout for layout in checkpoint.layouts if layout.gguf_name == gguf_name)
    tensors = random_tensors(CONFIGS[name])
    squared_error = 0.0
    for source in sources:
        change = coarse_change(tensors[source], "BF16")
        squared_error += float(np.square(change, dtype=np.float64).sum())
        tensors[source] = tensors[source] + change
    changed = shutil.copytree(checkpoint.folder, tmp_path / "changed")
    write_weights(changed, tensors, "F32", 1)
    (converted,) = convert(str(changed), ["gguf-f32"], models_dir=tmp_path / "models")
    expected = compare_rows(logits_of(artifact.path), logits_of(converted.path), np.zeros(len(TOKENS), np.intp))

    with closing(ObservedEngine(artifact.path, LoadOptions(), 64)) as engine, checkpoint.weights, worker_pool() as pool:
        coarse = CoarseTensor(checkpoint, layout, ColumnSums().importance((), 64), pool)
        divergence = Predictions(engine, TOKENS).divergence(coarse)
        found = coarse.squared_error()
    assert divergence == pytest.approx(expected["kl_divergence"].mean(), rel=0.01)
    assert divergence > 1e-5
    assert found == pytest.approx(squared_error, rel=1e-5)


def test_errors_are_weighted_by_the_importance_of_the_column(measured: Measured) -> None:
    checkpoint, artifact = measured("phi-3.5-moe")
    layout = next(layout for layout in checkpoint.layouts if layout.gguf_name == "blk.1.ffn_up_exps.weight")
    columns = ColumnSums()
    with closing(ObservedEngine(artifact.path, LoadOptions(), 64)) as engine:
        columns.compute(engine, TOKENS)
    importance = columns.importance((), 64)
    weights = importance.weights(layout.gguf_name)
    assert weights is not None
    with checkpoint.weights, worker_pool() as pool:
        found = CoarseTensor(checkpoint, layout, importance, pool).squared_error()
        values = to_float32(checkpoint.weights.read_rows(layout.name, 0, 4 * 256))
    change = np.square(coarse_change(values, "BF16").astype(np.float64)).reshape(4, 256, 256).sum(axis=1)
    assert found == pytest.approx(float((change * weights).sum()), rel=1e-5)


@pytest.mark.parametrize("columns", [256, 96, 48])
def test_coarse_values_are_those_of_mlx(columns: int) -> None:
    values = np.random.default_rng(3).standard_normal((8, columns)).astype(np.float32)
    values = np.array(mx.array(values).astype(mx.bfloat16).astype(mx.float32))
    group = {256: 64, 96: 32, 48: 16}[columns]
    change = coarse_change(values, "BF16")
    if group >= 32:
        packed = mx.quantize(mx.array(values).astype(mx.bfloat16), group, 3)
        back = np.array(mx.dequantize(*packed, group, 3).astype(mx.float32))
        assert np.abs(values + change - back).max() <= 2.0**-7 * np.abs(back).max()  # MLX rounds the result as well
    assert 0 < np.abs(change).max() < 1


def test_the_divergence_in_float32_is_that_in_float64() -> None:
    random = np.random.default_rng(1)
    before = random.standard_normal((6, 5000)).astype(np.float32) * 8
    for scale in (1e-3, 1e-2, 1.0, 10.0):
        after = before + scale * random.standard_normal(before.shape).astype(np.float32)
        expected = compare_rows(before, after, np.zeros(6, np.intp))["kl_divergence"]
        found = [kl_divergence(one, other) for one, other in zip(before, after, strict=True)]
        assert np.allclose(found, expected, rtol=1e-4, atol=3e-7)


def test_rows_that_fit_no_group_are_one_group() -> None:
    values = np.linspace(-1, 1, 2 * 17, dtype=np.float32).reshape(2, 17)
    assert len(np.unique((values + coarse_change(values, "F32"))[0])) == 8
