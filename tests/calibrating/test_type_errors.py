"""Measured errors, against the values that other programs read from what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localq.calibrating import type_errors
from localq.calibrating.type_errors import affine, measure_type_errors, sampled_rows
from localq.calibration.importance import ImportanceMatrix
from localq.calibration.types import FAST_GGUF_TYPES, PLAIN, PLAIN_GGUF_TYPES, mlx_key
from localq.checkpoint.folder import Checkpoint, open_checkpoint
from localq.checkpoint.source import cached_checkpoint
from localq.checkpoint.tensors import to_float32
from localq.conversion import ggml
from localq.reference import parse_reference
from tests.tiny_checkpoints import CONFIGS, write_checkpoint

Errors = dict[str, dict[str, float]]
NAME, ODD_NAME = "blk.0.attn_k.weight", "blk.0.ffn_down.weight"


@pytest.fixture(autouse=True)
def _fast_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without those that take seconds to set up in each process; one of them is tested alone."""
    monkeypatch.setattr(type_errors, "GGUF_TYPES", FAST_GGUF_TYPES)
    monkeypatch.setattr(type_errors, "SAMPLE_WEIGHTS", 1 << 15)  # all of NAME


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_checkpoint(tmp_path_factory.mktemp("model"), "llama-3"), "model")


@pytest.fixture(scope="module")
def importance(checkpoint: Checkpoint) -> ImportanceMatrix:
    return importance_of(checkpoint)


@pytest.fixture(scope="module")
def errors(checkpoint: Checkpoint, importance: ImportanceMatrix) -> Errors:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type_errors, "GGUF_TYPES", FAST_GGUF_TYPES)
        patch.setattr(type_errors, "SAMPLE_WEIGHTS", 1 << 15)
        return measure_type_errors(checkpoint, importance)


def importance_of(checkpoint: Checkpoint) -> ImportanceMatrix:
    generator = np.random.default_rng(0)
    layouts = [layout for layout in checkpoint.layouts if layout.is_quantizable]
    experts = {layout.gguf_name: layout.shape[0] if len(layout.shape) > 2 else 1 for layout in layouts}
    sums = {
        layout.gguf_name: generator.lognormal(0, 2, (experts[layout.gguf_name], layout.shape[-1])).astype(np.float32)
        for layout in layouts
    }
    return ImportanceMatrix(sums, {name: np.ones(count, np.float32) for name, count in experts.items()})


def rows_of(checkpoint: Checkpoint, name: str) -> np.ndarray:
    layout = next(layout for layout in checkpoint.layouts if layout.gguf_name == name)
    with checkpoint.weights as weights:
        rows = to_float32(weights.read_rows(layout.name, 0, int(np.prod(layout.shape[:-1]))))
    return rows.reshape(-1, layout.shape[-1])


def test_gguf_errors_are_those_of_the_values_that_the_gguf_package_reads(
    checkpoint: Checkpoint, importance: ImportanceMatrix, errors: Errors
) -> None:
    import gguf

    rows, columns = rows_of(checkpoint, NAME), importance.weights(NAME)
    assert columns is not None
    for kind in FAST_GGUF_TYPES:
        number = ggml.type_number(kind)
        for key, weights in ((kind, columns[0]), (PLAIN + kind, None)):
            if key in errors:
                data = ggml.quantize_rows(number, rows, weights)
                values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(number))
                expected = float((columns[0].astype(float) * (values.astype(float) - rows) ** 2).sum())
                assert errors[key][NAME] == pytest.approx(expected, rel=1e-5), key
    assert {PLAIN + kind for kind in PLAIN_GGUF_TYPES} <= errors.keys()


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_mlx_errors_are_those_of_the_values_that_mlx_computes_with(
    checkpoint: Checkpoint, importance: ImportanceMatrix, errors: Errors, bits: int
) -> None:
    import mlx.core as mx

    rows, columns = rows_of(checkpoint, NAME), importance.weights(NAME)
    assert columns is not None
    weight, scales, biases = mx.quantize(mx.array(rows).astype(mx.bfloat16), group_size=64, bits=bits)
    values = mx.dequantize(weight, scales.astype(mx.float32), biases.astype(mx.float32), group_size=64, bits=bits)
    expected = float((columns[0].astype(float) * (np.asarray(values).astype(float) - rows) ** 2).sum())
    plain = errors[mlx_key(bits, 64, PLAIN)][NAME]
    assert plain == pytest.approx(expected, rel=0.03)
    assert errors[mlx_key(bits, 64)][NAME] < plain
    assert affine(rows, bits, 64, "BF16") == pytest.approx(np.asarray(values), abs=0.02)


def test_without_an_importance_all_columns_count_alike(checkpoint: Checkpoint) -> None:
    errors = measure_type_errors(checkpoint, None)
    rows = rows_of(checkpoint, NAME)
    data = ggml.quantize_rows(ggml.type_number("q4_K"), rows)
    values = ggml.dequantize_rows(ggml.type_number("q4_K"), data, rows.shape[1])
    assert errors["q4_K"][NAME] == pytest.approx(float(np.square(values - rows).sum()), rel=1e-4)
    assert errors["q4_K"] == errors[PLAIN + "q4_K"]


def test_some_rows_tell_what_all_rows_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type_errors, "GGUF_TYPES", ("q2_K", "q4_K", "q6_K"))
    monkeypatch.setattr(type_errors, "MLX_TYPES", ((3, 64), (4, 64)))
    checkpoint = cached_checkpoint(parse_reference("toy-llama"))
    importance = importance_of(checkpoint)
    monkeypatch.setattr(type_errors, "SAMPLE_WEIGHTS", 1 << 20)
    whole = measure_type_errors(checkpoint, importance)
    monkeypatch.setattr(type_errors, "SAMPLE_WEIGHTS", 0)
    estimated = measure_type_errors(checkpoint, importance)
    deviations = [abs(estimated[key][name] / whole[key][name] - 1) for key in whole for name in whole[key]]
    assert np.median(deviations) < 0.05 and max(deviations) < 0.3


def test_rows_are_spread_over_a_tensor_without_a_period(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sampled_rows(20, 256) == list(range(20))
    monkeypatch.setattr(type_errors, "SAMPLE_WEIGHTS", 1 << 16)
    rows = sampled_rows(8192, 2048)
    assert len(rows) == 32 and sorted(set(rows)) == rows and rows[0] < 256 and 7900 < rows[-1] < 8192
    assert len({row % 64 for row in rows}) > 16  # heads have 64 rows


def test_each_expert_is_weighed_with_its_own_importance(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", "phi-mini-moe"), "model")
    name = "blk.0.ffn_up_exps.weight"
    importance = importance_of(checkpoint)
    whole = measure_type_errors(checkpoint, importance)["q4_K"][name]
    sums = importance.sums[name].copy()
    sums[1] *= 100
    changed = ImportanceMatrix({**importance.sums, name: sums}, importance.counts)
    more = measure_type_errors(checkpoint, changed)["q4_K"][name]
    assert 10 * whole < more < 60 * whole  # one of four experts counts a hundred times


def test_types_that_do_not_fit_a_tensor_have_no_error_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type_errors, "GGUF_TYPES", (*FAST_GGUF_TYPES, "iq3_xxs"))
    monkeypatch.setitem(CONFIGS, "odd", CONFIGS["llama-3"] | {"intermediate_size": 336})
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", "odd"), "model")
    seen: list[tuple[int, int]] = []
    errors = measure_type_errors(checkpoint, None, lambda done, total: seen.append((done, total)))
    assert all(ODD_NAME not in by_tensor for by_tensor in errors.values())
    assert "blk.0.ffn_up.weight" in errors["q4_K"]
    assert "iq3_xxs" not in errors  # llama.cpp does not make it without an importance
    assert seen[-1] == (len(seen), len(seen))
