"""Weights against the `safetensors` library: bits, ranges, faults while they are read."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from localq.checkpoint.tensors import to_float32
from localq.checkpoint.weights import Weights, find_weights
from localq.errors import CheckpointError
from tests.tiny_checkpoints import write_safetensors, write_weights

safe_open = pytest.importorskip("safetensors").safe_open

TENSORS = {
    "matrix": np.arange(35, dtype=np.float32).reshape(7, 5) / 8 - 2,
    "vector": np.linspace(-1, 1, 9, dtype=np.float32),
    "cube": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
}
SHARDS = ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]


def matrix_of(values: np.ndarray) -> np.ndarray:
    """Any tensor as localq reads it: rows of its last dimension."""
    return values if values.ndim < 2 else values.reshape(-1, values.shape[-1])


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_weights(tmp_path, TENSORS, "F32", shards=3)
    return tmp_path


@pytest.mark.parametrize(("dtype", "read_as"), [("F32", np.float32), ("F16", np.float16), ("BF16", np.uint16)])
def test_rows_have_the_bits_that_the_library_reads(tmp_path: Path, dtype: str, read_as: type) -> None:
    write_weights(tmp_path, TENSORS, dtype, shards=1)
    with safe_open(tmp_path / "model.safetensors", "np") as library, find_weights(tmp_path) as weights:
        for name, values in TENSORS.items():
            rows = weights.read_rows(name, 0, len(matrix_of(values)))
            assert rows.dtype == read_as
            if dtype != "BF16":  # numpy has no bfloat16 of its own
                np.testing.assert_array_equal(rows, matrix_of(library.get_tensor(name)))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("start", "stop"), [(0, 7), (0, 1), (3, 5), (6, 7), (4, 4)])
def test_a_range_of_rows_is_that_range_in_float32(tmp_path: Path, dtype: str, start: int, stop: int) -> None:
    write_weights(tmp_path, TENSORS, dtype, shards=1)
    expected = TENSORS["matrix"] if dtype != "F16" else TENSORS["matrix"].astype(np.float16).astype(np.float32)
    with find_weights(tmp_path) as weights:
        rows = to_float32(weights.read_rows("matrix", start, stop))
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected[start:stop])


def test_every_finite_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    bits = bits[bits & 0x7F80 != 0x7F80]
    write_safetensors(tmp_path / "model.safetensors", {"all": (bits.astype(np.uint32) << 16).view(np.float32)})
    with find_weights(tmp_path) as weights:
        wide = to_float32(weights.read_rows("all", 0, len(bits)))
        np.testing.assert_array_equal(weights.read_rows("all", 0, len(bits)), bits)
    np.testing.assert_array_equal(wide.view(np.uint32) >> 16, bits)
    assert not np.any(wide.view(np.uint32) & 0xFFFF)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_with_its_row(tmp_path: Path, dtype: str, value: float) -> None:
    damaged = {name: values.copy() for name, values in TENSORS.items()}
    damaged["matrix"][4, 2] = damaged["cube"][1, 2, 0] = damaged["vector"][8] = value
    write_weights(tmp_path, damaged, dtype, shards=1)
    with find_weights(tmp_path) as weights:
        weights.read_rows("matrix", 0, 4)
        for name, start, stop, row in [("matrix", 3, 7, 4), ("cube", 2, 6, 5), ("vector", 0, 9, 8)]:
            with pytest.raises(CheckpointError, match=f"tensor {name} holds {value} in row {row}"):
                weights.read_rows(name, start, stop)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    write_weights(tmp_path, TENSORS, "F32", shards=1)
    with find_weights(tmp_path) as weights:
        os.truncate(tmp_path / "model.safetensors", weights.tensors["cube"].offset + 10)
        np.testing.assert_array_equal(weights.read_rows("matrix", 0, 7), TENSORS["matrix"])
        with pytest.raises(CheckpointError, match="model.safetensors ended while tensor cube") as caught:
            weights.read_rows("cube", 0, 2)
    assert caught.value.hint


def test_a_file_that_goes_away_before_it_is_opened_is_an_error(sharded: Path) -> None:
    weights = find_weights(sharded)
    (sharded / SHARDS[2]).unlink()
    before = open_files()
    with pytest.raises(CheckpointError, match=SHARDS[2]), weights:
        pass
    assert open_files() == before


def test_closing_frees_the_files_and_opening_again_works(sharded: Path) -> None:
    weights = find_weights(sharded)
    before = open_files()
    for _ in range(2):
        with weights:
            assert open_files() == before + 3
            np.testing.assert_array_equal(weights.read_rows("vector", 2, 4), TENSORS["vector"][2:4])
        assert open_files() == before


def test_threads_read_at_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((400, 64)).astype(np.float32)
    write_weights(tmp_path, {"a": values, "b": -values}, "F32", shards=2)

    def read(weights: Weights, number: int) -> bool:
        name, sign = ("a", 1) if number % 2 else ("b", -1)
        start = number % 300
        return np.array_equal(
            to_float32(weights.read_rows(name, start, start + 100)), sign * values[start : start + 100]
        )

    with find_weights(tmp_path) as weights, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda number: read(weights, number), range(600)))
