"""Makes quantized/*.safetensors: what the quantization libraries store, and the floats that they read from it.

Needs torch, transformers, bitsandbytes, gptqmodel, auto-gptq, autoawq and compressed-tensors, none of which localq
needs; all of it runs on a CPU. The vectors in the repository come from bitsandbytes 0.50.2, gptqmodel 7.7.0,
auto-gptq 0.7.1, autoawq 0.2.7.post3, compressed-tensors 0.20.0, transformers 5.23.0 and torch 2.13.0:

    python tests/checkpoint/make_quantized_vectors.py [METHOD]...

A file holds several checkpoints. Their tensors are named CASE/TENSOR, and what the library makes of a quantized
weight is CASE/expected/TENSOR; the metadata of the file give the `quantization_config` and the dtype of each case.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TORCH_COMPILE_DISABLE"] = "1"  # compiled code may round differently

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "quantized"
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class Vectors:
    """The checkpoints of one method."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.cases: dict[str, Any] = {}

    def add(self, case: str, settings: dict[str, Any], stored: dict[str, Any], expected: torch.Tensor) -> None:
        """`stored` holds the parts of the weight `X.weight`, and other tensors."""
        self.cases[case] = {"quantization_config": settings, "dtype": DTYPES[expected.dtype]}
        self.tensors |= {f"{case}/{name}": tensor.contiguous().clone() for name, tensor in stored.items()}
        self.tensors[f"{case}/expected/X.weight"] = expected.contiguous().clone()

    def save(self, name: str) -> None:
        FOLDER.mkdir(exist_ok=True)
        metadata = {case: json.dumps(settings) for case, settings in self.cases.items()}
        save_file(self.tensors, FOLDER / f"{name}.safetensors", metadata)


def normal(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(rows, columns) * 0.05).to(dtype)


def bare_package(name: str) -> None:
    """Import modules of a package whose `__init__` imports more than its packing code needs."""
    specification = importlib.util.find_spec(name)
    assert specification is not None
    package = types.ModuleType(name)
    package.__path__ = list(specification.submodule_search_locations or [])
    sys.modules[name] = package


def bitsandbytes_vectors(vectors: Vectors) -> None:
    from bitsandbytes import functional

    for case, kind, shape, dtype, options in [
        ("nf4-nested", "nf4", (66, 128), torch.bfloat16, {"blocksize": 32, "compress_statistics": True}),
        ("nf4", "nf4", (24, 40), torch.float16, {"blocksize": 64}),
        ("nf4-odd", "nf4", (7, 37), torch.float32, {"blocksize": 64}),
        ("fp4", "fp4", (20, 64), torch.bfloat16, {"blocksize": 64}),
        ("fp4-blocks-over-rows", "fp4", (12, 48), torch.float16, {"blocksize": 128}),
        ("fp4-nested-storage", "fp4", (16, 72), torch.float32, {"compress_statistics": True, "blocksize": 64}),
    ]:
        storage = torch.bfloat16 if case.endswith("storage") else torch.uint8
        weight = normal(*shape, dtype)
        packed, state = functional.quantize_4bit(weight, quant_type=kind, quant_storage=storage, **options)
        parts = {f"X.weight.{key}": value for key, value in state.as_dict(packed=True).items()}
        settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
        stored = {"X.weight": packed, **parts, "norm.weight": normal(1, 4)[0]}
        vectors.add(case, settings, stored, dequantize_4bit(packed, state))
    for case, dtype in [("int8", torch.float16), ("int8-bfloat16", torch.bfloat16)]:
        integers, scales, _ = functional.int8_vectorwise_quant(normal(12, 40, torch.float16))
        stored = {"X.weight": integers, "X.SCB": scales, "X.weight_format": torch.tensor(0, dtype=torch.uint8)}
        expected = functional.int8_vectorwise_dequant(integers, scales).to(dtype)
        vectors.add(case, {"quant_method": "bitsandbytes", "load_in_8bit": True}, stored, expected)


def dequantize_4bit(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """By bitsandbytes' portable implementation.

    Its AVX-512 kernel (0.50.2) takes the blocks of another row where blocks run on over the ends of rows, which
    those of the usual sizes don't; where they don't, it must agree, but for the sign of zeros.
    """
    from bitsandbytes import functional
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    absmax = state.absmax
    if state.nested:
        absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
    data = packed.view(torch.uint8).reshape(-1)
    values = _dequantize_4bit_compute(data, absmax, state.code, state.blocksize, state.shape, state.dtype)
    if state.shape[-1] % state.blocksize == 0:
        assert torch.equal(values, functional.dequantize_4bit(packed, state))
    return values


def gptq_parts(
    weight: torch.Tensor, bits: int, groups: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points, shape (rows, groups)."""
    count, largest = int(groups.max()) + 1, 2**bits - 1
    low = torch.stack([weight[:, groups == group].amin(1) for group in range(count)], 1).clamp(max=0)
    high = torch.stack([weight[:, groups == group].amax(1) for group in range(count)], 1).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        return high * 2 / largest, torch.full_like(high, 2 ** (bits - 1))
    scales = (high - low) / largest
    return scales, torch.round(-low / scales)


def gptq_vectors(vectors: Vectors) -> None:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module

    for case, bits, size, changes in [
        ("4-bits", 4, 32, {}),
        ("4-bits-act-order", 4, 32, {"desc_act": True}),
        ("4-bits-one-group-bfloat16", 4, -1, {}),
        ("4-bits-asymmetric", 4, 16, {"sym": False}),
        ("8-bits-act-order", 8, 32, {"desc_act": True}),
        ("3-bits", 3, 32, {}),
        ("2-bits-v2", 2, 16, {"sym": False, "checkpoint_format": "gptq_v2"}),
    ]:
        settings = {"quant_method": "gptq", "bits": bits, "group_size": size, "sym": True, "desc_act": False}
        settings |= {"checkpoint_format": "gptq", "meta": {"quantizer": ["gptqmodel:7.7.0"]}, **changes}
        linear = torch.nn.Linear(64, 32, bias=False, dtype=torch.float16)
        linear.weight.data = normal(32, 64, torch.float16)
        if case == "4-bits-asymmetric":  # a zero point of 0, which format gptq stores as -1
            linear.weight.data[3, :16] = linear.weight.data[3, :16].abs()
        groups = torch.arange(64) // (64 if size == -1 else size)
        if settings["desc_act"]:
            groups = groups[torch.randperm(64)]
        scales, zeros = gptq_parts(linear.weight.data.float(), bits, groups, settings["sym"])
        module = TorchLinear(bits, size, settings["sym"], settings["desc_act"], 64, 32)
        module.pack(linear, scales, zeros, groups.to(torch.int32))
        if "bfloat16" in case:
            module.scales = module.scales.bfloat16()
        if settings["checkpoint_format"] == "gptq":
            convert_gptq_v2_to_v1_format_module(module, types.SimpleNamespace(bits=bits, pack_dtype=torch.int32))
        stored = {f"X.{name}": getattr(module, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
        stored = {name: tensor.clone() for name, tensor in stored.items()}
        if settings["checkpoint_format"] == "gptq":
            convert_gptq_v1_to_v2_format_module(module, bits, torch.int32)
        vectors.add(case, settings, stored, module.dequantize_weight().T)
    auto_gptq_vectors(vectors)


def auto_gptq_vectors(vectors: Vectors) -> None:
    bare_package("auto_gptq")
    from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear

    for case, bits, symmetric in [("autogptq-4-bits", 4, False), ("autogptq-3-bits-old", 3, True)]:
        linear = torch.nn.Linear(64, 32, bias=False, dtype=torch.float16)
        linear.weight.data = normal(32, 64, torch.float16)
        groups = torch.arange(64, dtype=torch.int32) // 32
        scales, zeros = gptq_parts(linear.weight.data.float(), bits, groups, symmetric)
        module = QuantLinear(bits, 32, 64, 32, bias=False)
        module.pack(linear, scales, zeros, groups)
        settings = {"quant_method": "gptq", "bits": bits, "group_size": 32, "sym": symmetric, "desc_act": False}
        stored = {f"X.{name}": getattr(module, name) for name in ("qweight", "qzeros", "scales")}
        if not case.endswith("old"):
            stored["X.g_idx"] = module.g_idx
        # The product with the identity gives the weights, as each sum has one term.
        vectors.add(case, settings, stored, module(torch.eye(64, dtype=torch.float16)).T)


def awq_vectors(vectors: Vectors) -> None:
    for name in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):
        bare_package(name)
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    for case, size, dtype in [("gemm", 32, torch.float16), ("gemm-bfloat16", 64, torch.bfloat16)]:
        linear = torch.nn.Linear(64, 32, bias=False, dtype=torch.float16)
        linear.weight.data = normal(32, 64, torch.float16)
        groups = torch.arange(64) // size
        scales, zeros = gptq_parts(linear.weight.data.float(), 4, groups, False)
        module = WQLinear_GEMM.from_linear(linear, 4, size, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
        stored = {"X.qweight": module.qweight, "X.qzeros": module.qzeros, "X.scales": module.scales.to(dtype)}
        settings = {"quant_method": "awq", "bits": 4, "group_size": size, "zero_point": True, "version": "gemm"}
        expected = dequantize_gemm(module.qweight, module.qzeros, module.scales.to(dtype), 4, size)
        vectors.add(case, settings, stored, expected.T)


def fp8_vectors(vectors: Vectors) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    for case, dtype, block, kind in [
        ("blocks", torch.bfloat16, [8, 24], torch.float8_e4m3fn),
        ("tensor", torch.float16, None, torch.float8_e5m2),
    ]:
        finite = torch.arange(256, dtype=torch.uint8).view(kind).float().nan_to_num(0, 0, 0)
        weight = torch.cat([finite, torch.randn(24 * 48 - 256) * 100]).reshape(24, 48).to(kind)
        scale = torch.rand(3, 2) * 1e-3 if block else torch.rand(1) * 1e-3
        settings = {"quant_method": "fp8", "weight_block_size": block}
        expected = Fp8Dequantize(None)._dequantize_one(weight, scale if block else scale[None], dtype)
        stored = {"X.weight": weight, "X.weight_scale_inv": scale, "X.activation_scale": torch.ones(1)}
        vectors.add(case, settings, stored, expected)


def compressed_vectors(vectors: Vectors) -> None:
    from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    for case, stored_as, options, scale in [
        ("rows", "float-quantized", {"type": "float", "strategy": "channel"}, torch.rand(24, 1)),
        ("tensor", "float-quantized", {"type": "float", "strategy": "tensor"}, torch.rand(1)),
        (
            "blocks",
            "float-quantized",
            {"type": "float", "strategy": "block", "block_structure": [8, 24]},
            torch.rand(3, 2),
        ),
        ("integers", "int-quantized", {"type": "int", "strategy": "channel"}, torch.rand(24, 1)),
    ]:
        arguments = QuantizationArgs(num_bits=8, symmetric=True, **options)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        state = {"weight": normal(24, 48, torch.bfloat16), "weight_scale": (scale * 1e-3 + 1e-4).bfloat16()}
        stored = NaiveQuantizationCompressor.compress(state, scheme)
        expected = NaiveQuantizationCompressor.decompress(dict(stored), scheme)["weight"]
        settings = {"quant_method": "compressed-tensors", "format": stored_as}
        settings["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": arguments.model_dump(mode="json")}}
        vectors.add(case, settings, {f"X.{name}": tensor for name, tensor in stored.items()}, expected)
    for case, options in [
        ("packed", {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": True}),
        ("packed-asymmetric", {"num_bits": 4, "strategy": "group", "group_size": 16, "symmetric": False}),
        ("packed-8-bits-rows", {"num_bits": 8, "strategy": "channel", "symmetric": True}),
    ]:
        arguments = QuantizationArgs(type="int", **options)
        scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
        groups = 3 if options["strategy"] == "group" else 1
        state = {"weight": normal(20, 48, torch.bfloat16)}
        state["weight_scale"] = (torch.rand(20, groups) * 0.01 + 0.001).bfloat16()
        if not options["symmetric"]:
            state["weight_zero_point"] = torch.randint(-8, 8, (20, groups), dtype=torch.int8)
        stored = PackedQuantizationCompressor.compress(state, scheme)
        expected = PackedQuantizationCompressor.decompress(dict(stored), scheme)["weight"]
        settings = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
        settings["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": arguments.model_dump(mode="json")}}
        vectors.add(case, settings, {f"X.{name}": tensor for name, tensor in stored.items()}, expected)


METHODS: dict[str, Callable[[Vectors], None]] = {
    "bitsandbytes": bitsandbytes_vectors,
    "gptq": gptq_vectors,
    "awq": awq_vectors,
    "fp8": fp8_vectors,
    "compressed_tensors": compressed_vectors,
}

if __name__ == "__main__":
    for method in sys.argv[1:] or METHODS:
        torch.manual_seed(7)
        vectors = Vectors()
        METHODS[method](vectors)
        vectors.save(method)
