"""What the quantization methods share: the stored parts of a weight, the tensor that they make, packed integers.

Knows no method.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.checkpoint.tensors import DTYPE_BYTES, StoredTensor, WeightFiles, WeightTensor, from_float32
from localq.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TAKE_THE_ORIGINAL = "convert from the original, unquantized checkpoint"


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """A matrix that is stored quantized, in several parts, and read as floats. See `WeightTensor`."""

    name: str
    dtype: str
    """What its values are rounded to: one of `FLOAT_DTYPES`."""
    shape: tuple[int, int]
    """(output features, input features)."""
    parts: Mapping[str, StoredTensor]
    """By their names in the method, such as `qweight`."""

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple({part.file: None for part in self.parts.values()})

    def read_rows(self, files: WeightFiles, start: int, stop: int) -> NDArray[Any]:
        """See `WeightTensor`. Damaged scales may give NaN or infinity, which `Weights.read_rows` finds."""
        import numpy as np

        with np.errstate(all="ignore"):
            return from_float32(self.values(files, start, stop), self.dtype)

    def values(self, files: WeightFiles, start: int, stop: int) -> NDArray[np.float32]:
        """The rows before they are rounded to `dtype`, shape (rows, columns)."""
        raise NotImplementedError


class StoredParts:
    """The tensors of a checkpoint; a method takes out those that are parts of quantized weights."""

    def __init__(self, tensors: Mapping[str, WeightTensor]) -> None:
        self._rest = dict(tensors)

    @property
    def rest(self) -> Mapping[str, WeightTensor]:
        """What was not taken."""
        return self._rest

    def stems(self, suffix: str) -> list[str]:
        """The names that end with `suffix`, without it."""
        return [name.removesuffix(suffix) for name in self._rest if name.endswith(suffix)]

    def has(self, name: str) -> bool:
        return name in self._rest

    def take(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...] | None = None) -> StoredTensor:
        """Take a tensor out; raises CheckpointError unless it is there with one of these dtypes and this shape."""
        tensor = self._rest.get(name)
        if tensor is None:
            raise CheckpointError(
                f"the checkpoint has no tensor {name}, which its quantized weights need",
                "download it again: `localq pull --verify REPO`",
            )
        if not isinstance(tensor, StoredTensor):
            raise UnsupportedModelError(f"tensor {name} is saved with gaps between its elements", TAKE_THE_ORIGINAL)
        if tensor.dtype not in dtypes:
            raise CheckpointError(
                f"tensor {name} is of dtype {tensor.dtype}; its quantization needs {' or '.join(dtypes)}",
                "config.json and weights are of different models: download both again",
            )
        if (shape is not None and tensor.shape != shape) or 0 in tensor.shape:
            raise CheckpointError(
                f"tensor {name} has shape {tensor.shape}; its quantization needs {shape or 'at least one element'}",
                "config.json and weights are of different models: download both again",
            )
        del self._rest[name]
        return tensor

    def take_matrix(self, name: str, dtypes: tuple[str, ...]) -> StoredTensor:
        """As `take`, of any shape with two dimensions."""
        tensor = self.take(name, dtypes)
        if len(tensor.shape) != 2:
            raise CheckpointError(
                f"tensor {name} has shape {tensor.shape}; a matrix has two dimensions",
                "download it again: `localq pull --verify REPO`",
            )
        return tensor

    def drop(self, suffixes: tuple[str, ...]) -> None:
        """Leave out the tensors whose names end so: a conversion to floats does not need them."""
        self._rest = {name: tensor for name, tensor in self._rest.items() if not name.endswith(suffixes)}


def integer_setting(settings: Mapping[str, Any], key: str) -> int:
    """A whole number that the quantization settings must have; raises CheckpointError."""
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"the quantization settings say {key} = {value!r}", "it must be a whole number")
    return value


def packed_name(method: str, settings: Mapping[str, Any]) -> str:
    """For people: `GPTQ, 4 bits, groups of 128`."""
    size = settings.get("group_size")
    groups = "one group per row" if size == -1 else f"groups of {size}"
    return f"{method}, {settings.get('bits')} bits, {groups}"


def group_size_of(settings: Mapping[str, Any], columns: int) -> int:
    """Columns that share a scale: `group_size`, where -1 means all of them. Raises CheckpointError."""
    size = integer_setting(settings, "group_size")
    if size == -1:
        return columns
    if size <= 0:
        raise CheckpointError(f"the quantization settings say group_size = {size}", "it must be -1, or 1 or more")
    return min(size, columns)


def group_count(elements: int, group_size: int) -> int:
    """How many groups there are; the last one may be shorter."""
    return -(-elements // group_size)


_STRETCH_BYTES = 1 << 20
"""Read in one call where rows are short."""

_SHORT_ROW_BYTES = 1 << 14
"""Below it, reading what is between two rows and dropping it is cheaper than another call."""


def read_columns(files: WeightFiles, tensor: StoredTensor, start: int, stop: int) -> NDArray[Any]:
    """Columns `start` to `stop` of a stored matrix, shape (rows, stop - start); takes memory of that size."""
    import numpy as np

    rows, columns = tensor.shape
    row_bytes = columns * DTYPE_BYTES[tensor.dtype]
    if row_bytes > _SHORT_ROW_BYTES:
        return np.stack([files.read(tensor, row * columns + start, stop - start) for row in range(rows)])
    step = _STRETCH_BYTES // row_bytes
    stretches = (tensor.read_rows(files, row, min(row + step, rows)) for row in range(0, rows, step))
    return np.concatenate([stretch[:, start:stop].copy() for stretch in stretches])


def unpack(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Integers of 2, 3, 4 or 8 bits, packed without gaps along each row of 32-bit words, lowest bits first.

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
    """(integer - zero) * scale, exact for scales of 16 bits.

    `integers` has shape (rows, columns), `zeros` and `scales` have (rows, groups). `groups` is the group of
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
