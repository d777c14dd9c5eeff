"""Quantized checkpoints with parts missing, damaged, or of a variant that is not read: named, never a traceback."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localq.checkpoint.dequantize import dequantized
from localq.errors import UnsupportedModelError
from tests.checkpoint.quantized_cases import CASES, Case, case_of, failure, stored_in, whole


@pytest.mark.parametrize(
    ("method", "name", "missing"),
    [
        ("bitsandbytes", "nf4-nested", "X.weight"),
        ("bitsandbytes", "nf4-nested", "X.weight.absmax"),
        ("bitsandbytes", "nf4-nested", "X.weight.nested_quant_map"),
        ("bitsandbytes", "nf4", "X.weight.quant_map"),
        ("bitsandbytes", "int8", "X.weight"),
        ("gptq", "4-bits", "X.qzeros"),
        ("gptq", "4-bits", "X.scales"),
        ("gptq", "4-bits-act-order", "X.g_idx"),
        ("awq", "gemm", "X.qzeros"),
        ("awq", "gemm", "X.scales"),
        ("compressed_tensors", "packed", "X.weight_scale"),
        ("compressed_tensors", "packed", "X.weight_shape"),
        ("compressed_tensors", "packed-asymmetric", "X.weight_zero_point"),
        ("fp8", "blocks", "X.weight"),
    ],
)
def test_a_missing_part_is_named(method: str, name: str, missing: str) -> None:
    case = case_of(method, name)
    del case.tensors[missing]
    assert f"no tensor {missing}" in failure(case).message


@pytest.mark.parametrize(
    ("method", "name", "scales"),
    [
        ("bitsandbytes", "nf4", "X.weight.quant_state.bitsandbytes__nf4"),
        ("bitsandbytes", "int8", "X.SCB"),
        ("fp8", "blocks", "X.weight_scale_inv"),
    ],
)
def test_a_quantized_weight_without_any_scales_is_named(method: str, name: str, scales: str) -> None:
    case = case_of(method, name)
    del case.tensors[scales]
    assert "tensor X.weight " in failure(case).message


@pytest.mark.parametrize(("path", "name"), CASES)
def test_a_part_of_another_dtype_or_shape_is_named(path: Path, name: str) -> None:
    for part, tensor in Case(path, name).tensors.items():
        if part.endswith(("norm.weight", "activation_scale")):
            continue
        for wrong in (replace(tensor, dtype="F64"), replace(tensor, shape=(*tensor.shape, 3, 5))):
            case = Case(path, name)
            case.tensors[part] = wrong
            assert part in failure(case).message


def test_groups_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    for wrong in (2, -1):
        case = case_of("gptq", "4-bits-act-order")
        groups = np.zeros(64, np.int32)
        groups[5] = wrong
        case.tensors["X.g_idx"] = stored_in(tmp_path, case.tensors["X.g_idx"], groups)
        assert "X.g_idx" in failure(case).message
        assert str(wrong) in failure(case).message


def test_a_zero_point_that_format_gptq_can_not_hold_is_refused_unless_gptqmodel_wrote_it() -> None:
    case = case_of("gptq", "4-bits-asymmetric")
    whole(case.read()["X.weight"])
    case.settings["meta"] = {"quantizer": ["autogptq:0.7.1"]}
    assert "X.qzeros has zero points of 15 + 1" in failure(case).message


STATE = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [24, 40]}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "X.weight.quant_state"),
        (b"\xff{", "X.weight.quant_state"),
        (b"[" * 5000, "X.weight.quant_state"),
        (b"[]", "X.weight.quant_state"),
        (b" " * 70000, "X.weight.quant_state"),
        ({"shape": None}, "X.weight says shape = None"),
        ({"shape": [24, -40]}, "X.weight says shape"),
        ({"shape": [24, True]}, "X.weight says shape"),
        ({"shape": [10**30, 10**30]}, "tensor X.weight has 480 bytes"),
        ({"shape": [24, 41]}, "tensor X.weight has 480 bytes"),
        ({"shape": [960]}, "X.weight says shape"),
        ({"blocksize": 0}, "X.weight says blocksize = 0"),
        ({"blocksize": 32}, "X.weight.absmax has shape (15,)"),
        ({"blocksize": "64"}, "blocksize = '64'"),
        ({"dtype": "int8"}, "X.weight says"),
        ({"dtype": ["float16"]}, "X.weight says"),
        ({"quant_type": "fp4"}, "X.weight says"),
    ],
)
def test_a_damaged_quantization_state_is_refused(tmp_path: Path, text: Any, told: str) -> None:
    case = case_of("bitsandbytes", "nf4")
    key = "X.weight.quant_state.bitsandbytes__nf4"
    content = json.dumps(STATE | text).encode() if isinstance(text, dict) else text
    case.tensors[key] = stored_in(tmp_path, case.tensors[key], np.frombuffer(content, np.uint8))
    assert told in failure(case).message


@pytest.mark.parametrize(
    "change", [{"nested_offset": None}, {"nested_offset": 10**400}, {"nested_blocksize": 10**30}, {"nested_dtype": 1}]
)
def test_damaged_double_quantization_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    case = case_of("bitsandbytes", "nf4-nested")
    key = "X.weight.quant_state.bitsandbytes__nf4"
    content = json.dumps(json.loads(whole(case.tensors[key]).tobytes()) | change).encode()
    case.tensors[key] = stored_in(tmp_path, case.tensors[key], np.frombuffer(content, np.uint8))
    assert f"X.weight says nested_blocksize = {change.get('nested_blocksize', 256)}" in failure(case).message


def test_scales_that_are_not_finite_give_such_values_without_a_warning(tmp_path: Path) -> None:
    case = case_of("bitsandbytes", "nf4")
    for value in (np.inf, np.nan):
        absmax = np.full(case.tensors["X.weight.absmax"].shape, value, np.float32)
        case.tensors["X.weight.absmax"] = stored_in(tmp_path, case.tensors["X.weight.absmax"], absmax)
        assert not np.isfinite(whole(case.read()["X.weight"])).any()


def test_bytes_that_mean_no_number_are_read_as_nan(tmp_path: Path) -> None:
    case = case_of("fp8", "tensor")
    case.tensors["X.weight"] = stored_in(tmp_path, case.tensors["X.weight"], np.full((2, 3), 0x7D, np.uint8))
    assert np.isnan(whole(case.read()["X.weight"])).all()
    case.tensors["X.weight"] = replace(case.tensors["X.weight"], dtype="F8_E4M3")
    assert np.isfinite(whole(case.read()["X.weight"])).all()
    case.tensors["X.weight"] = stored_in(tmp_path, case.tensors["X.weight"], np.full((2, 3), 0xFF, np.uint8))
    assert np.isnan(whole(case.read()["X.weight"])).all()


@pytest.mark.parametrize(
    ("method", "name", "change", "told"),
    [
        ("gptq", "4-bits", {"checkpoint_format": "marlin"}, "format marlin"),
        ("gptq", "4-bits", {"is_marlin_format": True}, "format marlin"),
        ("gptq", "4-bits", {"bits": 5}, "5 bits"),
        ("gptq", "4-bits", {"dynamic": {"+:.*down.*": {"bits": 8}}}, "different settings for some layers"),
        ("awq", "gemm", {"version": "gemv_fast"}, "version gemv_fast"),
        ("awq", "gemm", {"backend": "llm-awq"}, "by llm-awq"),
        ("compressed_tensors", "packed", {"format": "mixed-precision"}, "mixed-precision"),
        ("fp8", "blocks", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt, NVFP4"),
        ("compressed_tensors", "rows", {"format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        ("compressed_tensors", "rows", {"config_groups": None}, "compressed-tensors"),
        ("compressed_tensors", "rows", {"config_groups": {"group_0": None}}, "compressed-tensors"),
        ("compressed_tensors", "rows", {"transform_config": {"R1": 1}}, "compressed-tensors"),
        ("compressed_tensors", "rows", {"sparsity_config": {"format": "sparse-24"}}, "compressed-tensors"),
    ],
)
def test_variants_that_are_not_read_are_named(method: str, name: str, change: dict[str, Any], told: str) -> None:
    case = case_of(method, name)
    case.settings |= change
    error = failure(case)
    assert isinstance(error, UnsupportedModelError)
    assert told in error.message


@pytest.mark.parametrize("method", ["hqq", "aqlm", "quanto", "eetq", "bitnet", "mxfp4", "higgs", "vptq", "torchao"])
def test_other_methods_are_named(method: str) -> None:
    with pytest.raises(UnsupportedModelError, match=method) as caught:
        dequantized({}, {"quant_method": method}, "BF16")
    assert "original" in caught.value.hint


@pytest.mark.parametrize(
    ("method", "name", "change", "told"),
    [
        ("gptq", "4-bits", {"bits": "4"}, "bits = '4'"),
        ("gptq", "4-bits", {"group_size": 0}, "group_size = 0"),
        ("gptq", "4-bits", {"group_size": None}, "group_size = None"),
        ("gptq", "4-bits", {"group_size": 64}, "X.qzeros has shape (2, 4)"),
        ("gptq", "4-bits", {"group_size": 10**30}, "X.qzeros has shape (2, 4)"),
        ("gptq", "4-bits", {"bits": 3}, "X.qweight has shape (8, 32)"),
        ("awq", "gemm", {"group_size": 16}, "X.qzeros has shape (2, 4)"),
        ("fp8", "blocks", {"weight_block_size": [16, 24]}, "X.weight_scale_inv has shape (3, 2)"),
        ("fp8", "blocks", {"weight_block_size": [0, "a"]}, "X.weight_scale_inv has shape (3, 2)"),
    ],
)
def test_settings_that_do_not_fit_the_tensors_are_refused(
    method: str, name: str, change: dict[str, Any], told: str
) -> None:
    case = case_of(method, name)
    case.settings |= change
    assert told in failure(case).message


def test_an_interleaved_gpu_layout_is_refused(tmp_path: Path) -> None:
    case = case_of("bitsandbytes", "int8")
    stored_format = case.tensors["X.weight_format"]
    case.tensors["X.weight_format"] = stored_in(tmp_path, stored_format, np.array(1, np.uint8))
    assert "X.weight_format says format 1" in failure(case).message


def test_a_shape_that_does_not_fit_what_is_packed_is_refused(tmp_path: Path) -> None:
    for shape in ((20, 49), (20, -48), (0, 48), (2**62, 2**62)):
        case = case_of("compressed_tensors", "packed")
        case.tensors["X.weight_shape"] = stored_in(tmp_path, case.tensors["X.weight_shape"], np.array(shape))
        assert "X.weight_" in failure(case).message


def test_groups_in_the_order_of_activations_are_refused_where_they_are_packed() -> None:
    case = case_of("compressed_tensors", "packed")
    case.tensors["X.weight_g_idx"] = replace(case.tensors["X.weight_shape"], name="X.weight_g_idx")
    assert isinstance(failure(case), UnsupportedModelError)


def test_a_weight_that_is_there_twice_is_refused() -> None:
    case = case_of("gptq", "4-bits")
    case.tensors["X.weight"] = replace(case.tensors["X.scales"], name="X.weight")
    assert "X.weight twice" in failure(case).message
