"""AWQ, as AutoAWQ's `WQLinear_GEMM` stores it: 4-bit integers along the output features.

`qweight` (inputs, outputs / 8) and `qzeros` (groups, outputs / 8) pack eight output features into a 32-bit word,
in the order 0 2 4 6 1 3 5 7 from the lowest bits; `scales` is (groups, outputs). A weight is
(integer - zero) * scale, rounded to the dtype of the scales. Zero points are stored as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localq.checkpoint.quantized.parts import (
    TAKE_THE_ORIGINAL,
    QuantizedTensor,
    StoredParts,
    group_count,
    group_size_of,
    integer_setting,
    packed_name,
    read_columns,
    scale_groups,
)
from localq.checkpoint.tensors import FLOAT_DTYPES, WeightFiles, WeightTensor, to_float32
from localq.errors import UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight output features is in the first, second, ... four bits of a word."""


@dataclass(frozen=True, slots=True, eq=False)
class AwqTensor(QuantizedTensor):
    """Parts: `qweight`, `qzeros`, `scales`."""

    group_size: int

    def values(self, files: WeightFiles, start: int, stop: int) -> NDArray[np.float32]:
        first_word, last_word = start // 8, -(-stop // 8)
        rows = slice(start - first_word * 8, stop - first_word * 8)
        integers = _unpack(read_columns(files, self.parts["qweight"], first_word, last_word))[rows]
        zeros = _unpack(read_columns(files, self.parts["qzeros"], first_word, last_word))[rows]
        scales = to_float32(read_columns(files, self.parts["scales"], start, stop)).T
        return scale_groups(integers, zeros, scales, self.group_size)


def _unpack(words: NDArray[Any]) -> NDArray[np.uint8]:
    """Shape (rows, words) to (words * 8, rows): one row for each output feature."""
    import numpy as np

    rows, count = words.shape
    packed = np.ascontiguousarray(words.view(np.uint8).T).reshape(count, 4, rows)
    integers = np.empty((count, 8, rows), np.uint8)
    for byte in range(4):
        np.bitwise_and(packed[:, byte], 15, out=integers[:, _ORDER[2 * byte]])
        np.right_shift(packed[:, byte], 4, out=integers[:, _ORDER[2 * byte + 1]])
    return integers.reshape(count * 8, rows)


def awq_name(settings: Mapping[str, Any]) -> str:
    """For people: `AWQ, 4 bits, groups of 128`."""
    return packed_name("AWQ", settings)


def awq_weights(stored: StoredParts, settings: Mapping[str, Any], dtype: str) -> Iterator[WeightTensor]:
    """Every `X.qweight` with its zero points and scales as `X.weight`, of the dtype of the scales.

    Raises CheckpointError, and UnsupportedModelError for another packing that is also called AWQ.
    """
    version = str(settings.get("version", "gemm")).lower()
    backend = str(settings.get("backend", "autoawq")).lower()
    bits = integer_setting(settings, "bits")
    if version != "gemm" or backend != "autoawq" or bits != 4:
        raise UnsupportedModelError(
            f"localq does not read this kind of AWQ: {bits} bits, version {version}, by {backend}",
            TAKE_THE_ORIGINAL,
        )
    for stem in stored.stems(".qweight"):
        qweight = stored.take_matrix(f"{stem}.qweight", ("I32", "U32"))
        inputs, outputs = qweight.shape[0], qweight.shape[1] * 8
        group_size = group_size_of(settings, inputs)
        groups = group_count(inputs, group_size)
        parts = {
            "qweight": qweight,
            "qzeros": stored.take(f"{stem}.qzeros", ("I32", "U32"), (groups, outputs // 8)),
            "scales": stored.take(f"{stem}.scales", FLOAT_DTYPES, (groups, outputs)),
        }
        yield AwqTensor(f"{stem}.weight", parts["scales"].dtype, (outputs, inputs), parts, group_size)
