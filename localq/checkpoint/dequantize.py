"""Checkpoints that are quantized already, read as if they were not: each weight is one tensor of floats.

Chooses the method; the methods are in `localq.checkpoint.quantized`. Knows no family.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from localq.checkpoint.quantized.awq import awq_name, awq_weights
from localq.checkpoint.quantized.bitsandbytes import bitsandbytes_name, bitsandbytes_weights
from localq.checkpoint.quantized.compressed_tensors import compressed_name, compressed_weights
from localq.checkpoint.quantized.fp8 import fp8_name, fp8_weights, modelopt_name, modelopt_weights
from localq.checkpoint.quantized.gptq import gptq_name, gptq_weights
from localq.checkpoint.quantized.parts import TAKE_THE_ORIGINAL, QuantizedTensor, StoredParts
from localq.checkpoint.tensors import FLOAT_DTYPES, StoredTensor, WeightTensor, opened
from localq.errors import CheckpointError, UnsupportedModelError


@dataclass(frozen=True, slots=True)
class _Method:
    name: Callable[[Mapping[str, Any]], str]
    weights: Callable[[StoredParts, Mapping[str, Any], str], Iterator[WeightTensor]]


_METHODS = {
    "bitsandbytes": _Method(bitsandbytes_name, bitsandbytes_weights),
    "gptq": _Method(gptq_name, gptq_weights),
    "awq": _Method(awq_name, awq_weights),
    "fp8": _Method(fp8_name, fp8_weights),
    "fbgemm_fp8": _Method(fp8_name, fp8_weights),
    "modelopt": _Method(modelopt_name, modelopt_weights),
    "compressed-tensors": _Method(compressed_name, compressed_weights),
}


def quantization_name(quantization: Mapping[str, Any]) -> str:
    """A `quantization_config` for people: `GPTQ, 4 bits, groups of 128`. Never fails."""
    method = _method_of(quantization)
    return _METHODS[method].name(quantization) if method in _METHODS else method


def require_known_method(quantization: Mapping[str, Any]) -> None:
    """Raise UnsupportedModelError for a method that localq does not read, before the weights are here."""
    if _method_of(quantization) not in _METHODS:
        raise UnsupportedModelError(
            f"the checkpoint is already quantized ({quantization_name(quantization)}), which localq does not read",
            TAKE_THE_ORIGINAL,
        )


def dequantized(
    tensors: Mapping[str, WeightTensor], quantization: Mapping[str, Any], dtype: str
) -> dict[str, WeightTensor]:
    """The tensors of a checkpoint, where each quantized weight and its scales are one `X.weight` of floats.

    `quantization` is config.json's `quantization_config`, or `quantization` of an MLX folder. `dtype`, one of
    `FLOAT_DTYPES`, is what weights are rounded to where their method stores no dtype. Other tensors stay as they are;
    scales of activations are left out. Reads headers, and the quantization states of bitsandbytes.

    Raises UnsupportedModelError for a method that localq does not read, CheckpointError for missing or damaged parts.
    """
    require_known_method(quantization)
    method = _METHODS[_method_of(quantization)]
    stored = StoredParts(tensors)
    weights = list(method.weights(stored, quantization, dtype))
    result = dict(stored.rest)
    for weight in weights:
        if weight.name in result:
            raise CheckpointError(
                f"the checkpoint has {weight.name} twice, quantized and unquantized",
                "download it again: `localq pull --verify REPO`",
            )
        result[weight.name] = weight
    return result


def without_empty_biases(tensors: Mapping[str, WeightTensor], expected: Collection[str]) -> dict[str, WeightTensor]:
    """Leave out biases of quantized weights that are all zeros and whose names are not `expected`.

    AutoGPTQ stored one with every weight, also for models without biases (AutoGPTQ issue 555). A bias with other
    values stays, and is refused later. Raises CheckpointError where a file can't be read.
    """
    biases: list[StoredTensor] = []
    for name, weight in tensors.items():
        bias = tensors.get(f"{name.removesuffix('.weight')}.bias")
        if (
            isinstance(weight, QuantizedTensor)
            and isinstance(bias, StoredTensor)
            and bias.name not in expected
            and bias.dtype in FLOAT_DTYPES
            and bias.shape == weight.shape[:1]
        ):
            biases.append(bias)
    with opened(biases) as files:
        empty = {bias.name for bias in biases if not bias.read(files).any()}
    return {name: tensor for name, tensor in tensors.items() if name not in empty}


def _method_of(quantization: Mapping[str, Any]) -> str:
    """The first checkpoints of bitsandbytes do not name it; MLX never names itself."""
    method = quantization.get("quant_method")
    if method is None:
        return "bitsandbytes" if {"load_in_4bit", "load_in_8bit"} & set(quantization) else "MLX"
    return str(method)
