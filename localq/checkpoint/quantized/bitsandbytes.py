"""bitsandbytes: 4 bits (NF4 and FP4, with or without double quantization) and 8 bits (LLM.int8).

With 4 bits, `X.weight` holds two codes per byte, the first in the high bits, in blocks of `blocksize` weights that
do not stop at the ends of rows. A weight is `quant_map[code] * absmax[block]` in float32, rounded to the dtype of the
quantization state; with double quantization `absmax` itself is bytes:
`nested_quant_map[byte] * nested_absmax[its block] + nested_offset`. `bitsandbytes.functional.dequantize_4bit` does
the same on the CPU, but with its own table in place of `quant_map`, where it has stored the same numbers.
With 8 bits, a weight is `integer * SCB[row] * (1 / 127)` in float32 (`int8_vectorwise_dequant`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from localq.checkpoint.quantized.parts import (
    TAKE_THE_ORIGINAL,
    QuantizedTensor,
    StoredParts,
    group_count,
    integer_setting,
)
from localq.checkpoint.tensors import (
    FLOAT_DTYPE_OF,
    FLOAT_DTYPES,
    StoredTensor,
    WeightFiles,
    WeightTensor,
    opened,
    to_float32,
)
from localq.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""What `dequantize_4bit` accepts."""

_STATE_TYPES = ("nf4", "fp4")
_LARGEST_STATE_BYTES = 1 << 16

_ONE_127TH = 7.874015718698502e-3
"""As bitsandbytes writes it."""

_ROW_FORMAT = 0
"""Of `weight_format`: rows as they are. The others are interleaved for one kind of GPU."""


@dataclass(frozen=True, slots=True, eq=False)
class FourBitTensor(QuantizedTensor):
    """Parts: `weight`, `quant_map`, `absmax`; `nested_quant_map` and `nested_absmax` with double quantization."""

    block_size: int
    nested_block_size: int
    nested_offset: float

    def values(self, files: WeightFiles, start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        columns, size = self.shape[1], self.block_size
        first, last = start * columns, stop * columns
        first_block, last_block = first // size, group_count(last, size)
        begin, end = first_block * size, min(last_block * size, self.shape[0] * columns)
        packed = files.read(self.parts["weight"], begin // 2, -(-end // 2) - begin // 2)
        values = self._pairs(files).take(packed).view(np.float32)[: end - begin]
        values *= np.repeat(self._scales(files, first_block, last_block), size)[: end - begin]
        return values[first - begin : last - begin].reshape(-1, columns)

    def _pairs(self, files: WeightFiles) -> NDArray[np.uint64]:
        """The two float32 values of each byte as one integer: half the work of two look-ups."""
        import numpy as np

        code = to_float32(self.parts["quant_map"].read(files))
        return np.stack([np.repeat(code, 16), np.tile(code, 16)], axis=1).view(np.uint64).reshape(256)

    def _scales(self, files: WeightFiles, first: int, last: int) -> NDArray[np.float32]:
        import numpy as np

        absmax = files.read(self.parts["absmax"], first, last - first)
        if "nested_absmax" not in self.parts:
            return to_float32(absmax)
        size = self.nested_block_size
        outer = files.read(self.parts["nested_absmax"], first // size, group_count(last, size) - first // size)
        code = self.parts["nested_quant_map"].read(files)
        blocks = np.arange(first, last) // size - first // size
        scaled: NDArray[np.float32] = code[absmax] * outer[blocks] + np.float32(self.nested_offset)
        return scaled


@dataclass(frozen=True, slots=True, eq=False)
class EightBitTensor(QuantizedTensor):
    """Parts: `weight`, `SCB`."""

    def values(self, files: WeightFiles, start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        scales = files.read(self.parts["SCB"], start, stop - start)
        values = self.parts["weight"].read_rows(files, start, stop).astype(np.float32)
        values *= scales[:, np.newaxis]
        values *= np.float32(_ONE_127TH)
        return values


def bitsandbytes_name(settings: Mapping[str, Any]) -> str:
    """For people: `bitsandbytes, 4 bits (nf4)`."""
    if settings.get("load_in_8bit"):
        return "bitsandbytes, 8 bits"
    return f"bitsandbytes, 4 bits ({settings.get('bnb_4bit_quant_type', 'fp4')})"


def bitsandbytes_weights(stored: StoredParts, settings: Mapping[str, Any], dtype: str) -> Iterator[WeightTensor]:
    """Every `X.weight` that has scales: with 4 bits of the dtype that is stored, with 8 bits of `dtype`.

    Reads the quantization states. Raises CheckpointError, and UnsupportedModelError for GPU layouts.
    """
    states = {
        stem: (kind, stored.take(f"{stem}.quant_state.bitsandbytes__{kind}", ("U8",)))
        for kind in _STATE_TYPES
        for stem in stored.stems(f".quant_state.bitsandbytes__{kind}")
    }
    with opened([state for _, state in states.values()]) as files:
        for name, (kind, state) in states.items():
            yield _four_bit_tensor(stored, name, _read_state(files, state, kind), kind)
    formats = [stored.take(f"{stem}.weight_format", ("U8",)) for stem in stored.stems(".weight_format")]
    with opened(formats) as files:
        for stored_format in formats:
            _check_format(files, stored_format)
    for stem in stored.stems(".SCB"):
        weight = stored.take_matrix(f"{stem}.weight", ("I8",))
        rows, columns = weight.shape
        parts = {"weight": weight, "SCB": stored.take(f"{stem}.SCB", ("F32",), (rows,))}
        yield EightBitTensor(weight.name, dtype, (rows, columns), parts)
    for name, tensor in stored.rest.items():
        if name.endswith(".weight") and tensor.dtype in ("U8", "I8"):
            raise CheckpointError(
                f"tensor {name} is quantized, and the checkpoint has no scales for it",
                "download it again: `localq pull --verify REPO`",
            )


def _four_bit_tensor(stored: StoredParts, name: str, state: Mapping[str, Any], kind: str) -> FourBitTensor:
    shape, block_size = _shape(name, state), integer_setting(state, "blocksize")
    dtype = FLOAT_DTYPE_OF.get(str(state.get("dtype")))
    if block_size not in _BLOCK_SIZES or state.get("quant_type") != kind or dtype is None:
        raise _damaged(name, {key: state.get(key) for key in ("blocksize", "quant_type", "dtype")})
    packed = stored.take(name, ("U8", *FLOAT_DTYPES))
    # Whatever dtype it is stored in (`quant_storage`), it is bytes.
    weight = replace(packed, dtype="U8", shape=(packed.nbytes,))
    if weight.nbytes != (math.prod(shape) + 1) // 2:
        raise CheckpointError(
            f"tensor {name} has {weight.nbytes} bytes, which do not fit {shape} weights of 4 bits",
            "download it again: `localq pull --verify REPO`",
        )
    blocks = group_count(math.prod(shape), block_size)
    parts = {"weight": weight, "quant_map": stored.take(f"{name}.quant_map", ("F32",), (16,))}
    nested_block_size, offset = 1, 0.0
    if stored.has(f"{name}.nested_absmax"):
        nested_block_size, offset = _nested(name, state)
        outer = (group_count(blocks, nested_block_size),)
        parts["absmax"] = stored.take(f"{name}.absmax", ("U8",), (blocks,))
        parts["nested_absmax"] = stored.take(f"{name}.nested_absmax", ("F32",), outer)
        parts["nested_quant_map"] = stored.take(f"{name}.nested_quant_map", ("F32",), (256,))
    else:
        parts["absmax"] = stored.take(f"{name}.absmax", FLOAT_DTYPES, (blocks,))
    return FourBitTensor(name, dtype, shape, parts, block_size, nested_block_size, offset)


def _read_state(files: WeightFiles, stored: StoredTensor, kind: str) -> Mapping[str, Any]:
    """The JSON object that is stored as bytes."""
    if stored.nbytes > _LARGEST_STATE_BYTES:
        raise CheckpointError(
            f"tensor {stored.name} has {stored.nbytes} bytes; it must be a short JSON text",
            "download the checkpoint again",
        )
    try:
        state = json.loads(stored.read(files).tobytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"tensor {stored.name} can't be read as JSON", "download the checkpoint again") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"tensor {stored.name} holds no JSON object", "download the checkpoint again")
    return state


def _shape(name: str, state: Mapping[str, Any]) -> tuple[int, int]:
    shape = state.get("shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(size) is int and size > 0 for size in shape):
        raise _damaged(name, {"shape": shape})
    return shape[0], shape[1]


def _nested(name: str, state: Mapping[str, Any]) -> tuple[int, float]:
    size, offset = integer_setting(state, "nested_blocksize"), state.get("nested_offset")
    if size not in _BLOCK_SIZES or not isinstance(offset, float) or state.get("nested_dtype") != "float32":
        raise _damaged(name, {key: state.get(key) for key in ("nested_blocksize", "nested_offset", "nested_dtype")})
    return size, offset


def _damaged(name: str, settings: Mapping[str, Any]) -> CheckpointError:
    said = ", ".join(f"{key} = {value!r}" for key, value in settings.items())
    return CheckpointError(f"the quantization state of tensor {name} says {said}", "download the checkpoint again")


def _check_format(files: WeightFiles, stored: StoredTensor) -> None:
    number = stored.read(files).tolist() if stored.element_count == 1 else stored.shape
    if number not in (_ROW_FORMAT, [_ROW_FORMAT]):
        raise UnsupportedModelError(
            f"tensor {stored.name} says format {number}, which is for one kind of GPU only", TAKE_THE_ORIGINAL
        )
