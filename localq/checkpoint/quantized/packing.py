"""Small integers packed into 32-bit words, and scaled by groups. Knows no method and no names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localq.checkpoint.tensors import DTYPE_BYTES, StoredTensor, WeightFiles

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_STRETCH_BYTES = 1 << 20
"""Read at once where rows are short."""

_SHORT_ROW_BYTES = 1 << 14
"""To read on to the next row and throw away what lies between is then cheaper than another call."""


def read_columns(files: WeightFiles, tensor: StoredTensor, start: int, stop: int) -> NDArray[Any]:
    """Columns `start` to `stop` of a stored matrix, shape (rows, stop - start), in memory of that size."""
    import numpy as np

    rows, columns = tensor.shape
    row_bytes = columns * DTYPE_BYTES[tensor.dtype]
    if row_bytes > _SHORT_ROW_BYTES:
        return np.stack([files.read(tensor, row * columns + start, stop - start) for row in range(rows)])
    step = _STRETCH_BYTES // row_bytes
    stretches = (tensor.read_rows(files, row, min(row + step, rows)) for row in range(0, rows, step))
    return np.concatenate([stretch[:, start:stop].copy() for stretch in stretches])


def unpack(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Integers of 2, 3, 4 or 8 bits packed densely along each row of 32-bit words, lowest bits first.

    Shape (rows, words) to (rows, words * 32 // bits); of 3 bits, 32 integers fill 3 words.
    """
    import numpy as np

    packed = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return packed
    # Eight integers fill `bits` bytes.
    bytes_of_eight = packed.reshape(len(packed), -1, bits)
    eight = bytes_of_eight[..., 0].astype(np.uint32)
    for number in range(1, bits):
        eight |= bytes_of_eight[..., number].astype(np.uint32) << np.uint32(8 * number)
    integers = np.empty((*eight.shape, 8), np.uint8)
    for number in range(8):
        integers[..., number] = (eight >> np.uint32(bits * number)) & np.uint32((1 << bits) - 1)
    return integers.reshape(len(packed), -1)


def scale_groups(
    integers: NDArray[np.uint8],
    zeros: NDArray[np.uint8],
    scales: NDArray[np.float32],
    group_size: int,
    groups: NDArray[Any] | None = None,
) -> NDArray[np.float32]:
    """(integer - zero) * scale, exact where a scale was of 16 bits.

    `integers` has shape (rows, columns), `zeros` and `scales` have (rows, groups). `groups` names the group of
    each column; without it, groups of `group_size` columns follow each other, and the last may be shorter.
    """
    import numpy as np

    rows, columns = integers.shape
    values = integers.astype(np.float32)
    consecutive = np.arange(columns) // group_size
    if columns % group_size == 0 and (groups is None or np.array_equal(groups, consecutive)):
        grouped = values.reshape(rows, -1, group_size)
        grouped -= zeros[..., np.newaxis]
        grouped *= scales[..., np.newaxis]
        return values
    groups = consecutive if groups is None else groups
    values -= zeros.astype(np.float32).take(groups, axis=1)
    values *= scales.take(groups, axis=1)
    return values
