"""Quantized checkpoints are read, bit for bit, as by the libraries that made them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localq.checkpoint.dequantize import quantization_name, without_empty_biases
from localq.checkpoint.tensors import WeightFiles
from tests.checkpoint.quantized_cases import CASES, VECTORS, Case, case_of, settings_of, stored_in, whole


@pytest.fixture
def files() -> Iterator[WeightFiles]:
    opened = WeightFiles()
    opened.open(VECTORS.values())
    yield opened
    opened.close()


@pytest.mark.parametrize(("path", "name"), CASES)
def test_weights_have_the_bits_that_the_library_reads(path: Path, name: str, files: WeightFiles) -> None:
    case = Case(path, name)
    weight = case.read()["X.weight"]
    expected = case.expected.read(files)
    assert (weight.dtype, weight.shape) == (case.expected.dtype, case.expected.shape)
    assert weight.read_rows(files, 0, len(expected)).tobytes() == expected.tobytes()
    assert weight.files == (path,)


@pytest.mark.parametrize(("path", "name"), CASES)
def test_every_range_of_rows_is_that_part_of_the_whole(path: Path, name: str, files: WeightFiles) -> None:
    weight = Case(path, name).read()["X.weight"]
    rows = whole(weight)
    numbers = np.random.default_rng(3)
    for start, length in zip(numbers.integers(0, len(rows), 40), numbers.integers(1, 30, 40), strict=True):
        stop = min(start + length, len(rows))
        part = weight.read_rows(files, int(start), int(stop))
        assert part.dtype == rows.dtype
        assert part.tobytes() == rows[start:stop].tobytes()


def test_unquantized_tensors_stay_and_scales_of_activations_are_dropped() -> None:
    case = case_of("bitsandbytes", "nf4-nested")
    assert set(case.read()) == {"X.weight", "norm.weight"}
    assert case.read()["norm.weight"] is case.tensors["norm.weight"]
    assert set(case_of("fp8", "blocks").read()) == {"X.weight"}


def test_columns_of_wide_matrices_are_those_of_narrow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("gptq", "awq"):
        for name in settings_of(VECTORS[method]):
            weight = case_of(method, name).read()["X.weight"]
            rows = whole(weight)
            with monkeypatch.context() as context:
                context.setattr("localq.checkpoint.quantized.parts._SHORT_ROW_BYTES", 0)
                assert whole(weight).tobytes() == rows.tobytes()
            with monkeypatch.context() as context:
                context.setattr("localq.checkpoint.quantized.parts._STRETCH_BYTES", 400)
                assert whole(weight).tobytes() == rows.tobytes()


def test_biases_of_zeros_that_the_model_does_not_have_are_dropped_and_others_stay(tmp_path: Path) -> None:
    case = case_of("gptq", "4-bits")
    bias = replace(case.tensors["X.scales"], name="X.bias")
    for values, expected, stays in [
        (np.zeros(32, np.float16), set(), False),
        (np.zeros(32, np.float16), {"X.bias"}, True),
        (np.full(32, 6e-8, np.float16), set(), True),
        (np.zeros(33, np.float16), set(), True),
    ]:
        case.tensors["X.bias"] = stored_in(tmp_path, bias, values)
        assert ("X.bias" in without_empty_biases(case.read(), expected)) is stays


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ, 4 bits, groups of 128"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "GPTQ, 8 bits, one group per row"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "AWQ, 4 bits, groups of 64"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes, 4 bits (nf4)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, 8 bits"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8, blocks of 128 x 128"),
        ({"quant_method": "fbgemm_fp8"}, "FP8"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors, float-quantized"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt, FP8"),
        ({"group_size": 64, "bits": 4}, "MLX"),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_methods_have_names_for_people(settings: dict[str, Any], name: str) -> None:
    assert quantization_name(settings) == name
