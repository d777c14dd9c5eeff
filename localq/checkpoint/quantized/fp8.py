"""Weights of 8 bits, floats or integers, with scales for the whole tensor, its rows or its blocks.

`fp8` (DeepSeek, transformers, AutoFP8, vLLM), `fbgemm_fp8`, `modelopt` and `compressed-tensors` name and shape the
scales differently and mean the same: a weight is value * scale, also where the scale is called `weight_scale_inv`.
The product is computed in float32 and rounded to the dtype of the model. Scales of activations and of the KV cache
are for arithmetic in 8 bits, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localq.checkpoint.quantized.parts import TAKE_THE_ORIGINAL, QuantizedTensor, StoredParts, group_count
from localq.checkpoint.tensors import FLOAT_DTYPES, StoredTensor, WeightFiles, WeightTensor, to_float32
from localq.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOATS_OF_8_BITS = ("F8_E4M3", "F8_E5M2")
_SCALES = (".weight_scale_inv", ".weight_scale")
_INPUT_SCALES = (".input_scale", ".activation_scale", ".input_scale_ub", ".output_scale")
_CACHE_SCALES = (".kv_scale", ".q_scale", ".k_scale", ".v_scale")


@dataclass(frozen=True, slots=True, eq=False)
class ScaledTensor(QuantizedTensor):
    """Parts: `weight`, `scale`."""

    block: tuple[int, int]
    """Rows and columns that share a scale."""

    def values(self, files: WeightFiles, start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        weight, scale = self.parts["weight"], self.parts["scale"]
        stored = weight.read_rows(files, start, stop)
        values: NDArray[np.float32] = (
            stored.astype(np.float32) if weight.dtype == "I8" else float_values(weight.dtype).take(stored)
        )
        height, width = self.block
        across = group_count(self.shape[1], width)
        first, last = start // height, group_count(stop, height)
        scales = to_float32(files.read(scale, first * across, (last - first) * across)).reshape(-1, across)
        scales = scales[np.arange(start, stop) // height - first]
        values *= scales if across == 1 else np.repeat(scales, width, axis=1)[:, : self.shape[1]]
        return values


def float_values(dtype: str) -> NDArray[np.float32]:
    """What each of the 256 bytes means.

    `F8_E4M3`: 4 bits of exponent with bias 7, 3 of mantissa, no infinity, NaN where all bits but the sign are
    set; `F8_E5M2`: the high byte of a float16 (OCP 8-bit floating point specification 1.0).
    """
    import numpy as np

    byte = np.arange(256)
    if dtype == "F8_E5M2":
        return (byte.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    exponent, mantissa = byte >> 3 & 15, byte & 7
    values = np.where(exponent > 0, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(1.0 * mantissa, -9))
    values[byte & 127 == 127] = np.nan
    values[byte >= 128] *= -1
    narrow: NDArray[np.float32] = values.astype(np.float32)
    return narrow


def fp8_name(settings: Mapping[str, Any]) -> str:
    """For people: `FP8, blocks of 128 x 128`."""
    block = settings.get("weight_block_size")
    return f"FP8, blocks of {' x '.join(str(size) for size in block)}" if isinstance(block, list) else "FP8"


def modelopt_name(settings: Mapping[str, Any]) -> str:
    """For people: `modelopt, FP8`."""
    return f"modelopt, {settings.get('quant_algo')}"


def fp8_weights(stored: StoredParts, settings: Mapping[str, Any], dtype: str) -> Iterator[WeightTensor]:
    """Every 8-bit float `X.weight` that has scales, as a tensor of `dtype`. Raises CheckpointError."""
    return scaled_weights(stored, FLOATS_OF_8_BITS, settings.get("weight_block_size"), dtype)


def modelopt_weights(stored: StoredParts, settings: Mapping[str, Any], dtype: str) -> Iterator[WeightTensor]:
    """As `fp8_weights`; raises UnsupportedModelError for modelopt's other methods."""
    if settings.get("quant_algo") != "FP8":
        raise UnsupportedModelError(
            f"the checkpoint is quantized ({modelopt_name(settings)}), which localq does not read", TAKE_THE_ORIGINAL
        )
    return scaled_weights(stored, FLOATS_OF_8_BITS, None, dtype)


def scaled_weights(stored: StoredParts, dtypes: tuple[str, ...], block: object, dtype: str) -> Iterator[WeightTensor]:
    """Every `X.weight` of `dtypes` that has scales, as a tensor of `dtype`; `block` is (rows, columns) or None.

    Raises CheckpointError for scales that don't fit their weights, and for 8-bit floats without any.
    """
    for suffix in _SCALES:
        for stem in stored.stems(suffix):
            weight = stored.take_matrix(f"{stem}.weight", dtypes)
            parts = {"weight": weight, "scale": stored.take(f"{stem}{suffix}", FLOAT_DTYPES)}
            shape = weight.shape[0], weight.shape[1]
            yield ScaledTensor(weight.name, dtype, shape, parts, _block_of(parts["scale"], shape, block))
    drop_activation_scales(stored)
    for name, tensor in stored.rest.items():
        if tensor.dtype in FLOATS_OF_8_BITS:
            raise CheckpointError(
                f"tensor {name} is of dtype {tensor.dtype} and has no scale",
                "download it again: `localq pull --verify REPO`",
            )


def drop_activation_scales(stored: StoredParts) -> None:
    """Leave out the scales that only arithmetic in 8 bits needs."""
    stored.drop(_INPUT_SCALES + _CACHE_SCALES)


def _block_of(scale: StoredTensor, shape: tuple[int, int], block: object) -> tuple[int, int]:
    """Rows and columns that share a scale, from the shape of the scales and the `block` of the settings."""
    rows, columns = shape
    if scale.element_count == 1:
        return shape
    if scale.shape in ((rows,), (rows, 1)):
        return 1, columns
    if isinstance(block, list) and len(block) == 2 and all(type(size) is int and size > 0 for size in block):
        height, width = block
        if scale.shape == (group_count(rows, height), group_count(columns, width)):
            return min(height, rows), min(width, columns)
    raise CheckpointError(
        f"tensor {scale.name} has shape {scale.shape}, which does not fit {shape} weights in blocks of {block}",
        "config.json and weights are of different models: download both again",
    )
