"""One tensor of a checkpoint, however it is stored: its name, shape and precision, and its rows.

Reads use `pread`, never a memory map: so a file that shrinks while it is read gives an error and no crash, and
several threads can read at once. Knows no file format and not what the tensors are for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from localq.disk import reason
from localq.errors import CheckpointError, shown
from localq.regular_files import open_descriptor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOAT_DTYPES = ("F32", "F16", "BF16")
"""Precisions that weights are converted from."""

FLOAT_DTYPE_OF = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""By PyTorch's names, as config.json has them."""

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
DTYPE_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}
"""Bytes of one element, by safetensors' dtype names, which localq uses for every format of files."""

_NUMPY_DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1"}
_NUMPY_DTYPES |= {"BF16": "u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "U8": "u1", "BOOL": "u1", "U16": "u2", "U32": "u4"}
_NUMPY_DTYPES |= {"U64": "u8"}
"""numpy has no bfloat16 and no 8-bit floats: their bits are read as unsigned integers."""


PIECE_ELEMENTS = 1 << 20
"""Weights per piece: 4 MiB as float32."""


_MOST_NAME_CHARACTERS = 512


def require_plain_name(file: Path, name: str) -> None:
    """Raise CheckpointError for a tensor's name that no model has: messages may then show names as they are."""
    if len(name) > _MOST_NAME_CHARACTERS or not name.isprintable():
        raise CheckpointError(
            f"{file} has a tensor with the name '{shown(name)}'", "don't trust this file: no model has such names"
        )


class WeightFiles:
    """The open files of a checkpoint. Thread-safe for reading."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def open(self, files: Iterable[Path]) -> None:
        """Raises CheckpointError when one is gone."""
        for file in files:
            if file not in self._descriptors:
                try:
                    self._descriptors[file] = open_descriptor(file)
                except OSError as error:
                    self.close()
                    raise CheckpointError(
                        f"{file} can't be opened: {reason(error)}", "do not move or delete it meanwhile"
                    ) from error

    def close(self) -> None:
        """Close all."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def read(self, tensor: StoredTensor, start: int, count: int) -> NDArray[Any]:
        """`count` elements of a tensor from element `start`, shape (count,).

        Raises CheckpointError when the file ends early.
        """
        import numpy as np

        elements: NDArray[Any] = np.empty(count, dtype=_NUMPY_DTYPES[tensor.dtype])
        view = memoryview(elements.view("u1"))  # type: ignore[arg-type]  # numpy's stubs know no Buffer
        offset = tensor.offset + start * DTYPE_BYTES[tensor.dtype]
        done = 0
        while done < len(view):
            try:
                read = os.preadv(self._descriptors[tensor.file], [view[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{tensor.file} can't be read: {error.strerror}", "check the disk") from error
            if read == 0:
                raise CheckpointError(
                    f"{tensor.file} ended while tensor {tensor.name} was read",
                    "the file was changed meanwhile: run it again",
                )
            done += read
        return elements


class WeightTensor(Protocol):
    """A matrix of prod(shape[:-1]) rows and shape[-1] columns, or a vector of shape[0] elements."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str:
        """Of its values: one of `FLOAT_DTYPES`; another of `DTYPE_BYTES` for a tensor that is no weight."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""

    @property
    def files(self) -> tuple[Path, ...]: ...

    def read_rows(self, files: WeightFiles, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop` (not included) of a matrix, or elements of a vector.

        Shape (rows, columns) or (elements,). Float dtypes come as float32, float16, or uint16 for the bits of
        bfloat16. Raises CheckpointError for damaged data.
        """


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor whose elements are together in a file, row after row."""

    name: str
    dtype: str
    """Of `DTYPE_BYTES`."""
    shape: tuple[int, ...]
    file: Path
    offset: int
    """First byte, from the start of the file."""

    @property
    def element_count(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.element_count * DTYPE_BYTES[self.dtype]

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    def read_rows(self, files: WeightFiles, start: int, stop: int) -> NDArray[Any]:
        """See `WeightTensor`."""
        if len(self.shape) < 2:
            return files.read(self, start, stop - start)
        columns = self.shape[-1]
        return files.read(self, start * columns, (stop - start) * columns).reshape(stop - start, columns)

    def read(self, files: WeightFiles) -> NDArray[Any]:
        """The whole tensor in its own shape: for small ones."""
        return files.read(self, 0, self.element_count).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class StridedTensor:
    """A matrix or vector whose elements are apart in a file, such as one that was transposed before it was saved."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements from a row to the next, and from a column to the next; from an element to the next of a vector."""
    storage: StoredTensor
    """Shape (elements,): from the tensor's first element to its last, or further."""

    @property
    def dtype(self) -> str:
        return self.storage.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def files(self) -> tuple[Path, ...]:
        return self.storage.files

    def read_rows(self, files: WeightFiles, start: int, stop: int) -> NDArray[Any]:
        """See `WeightTensor`. Reads row by row or column by column: what is closer together in the file."""
        import numpy as np

        if len(self.shape) == 1:
            return self._read(files, start * self.strides[0], stop - start, self.strides[0])
        row_stride, column_stride = self.strides
        first, count, columns = start * row_stride, stop - start, self.shape[1]
        rows = np.empty((count, columns), dtype=self._read(files, 0, 0, 1).dtype)
        if column_stride < row_stride:
            for row in range(count):
                rows[row] = self._read(files, first + row * row_stride, columns, column_stride)
        else:
            for column in range(columns):
                rows[:, column] = self._read(files, first + column * column_stride, count, row_stride)
        return rows

    def _read(self, files: WeightFiles, start: int, count: int, stride: int) -> NDArray[Any]:
        return files.read(self.storage, start, (count - 1) * stride + 1 if count else 0)[::stride]


@dataclass(frozen=True, slots=True)
class StackedTensor:
    """Matrices of equal shape as one tensor of shape (number, rows, columns), such as a layer's experts."""

    name: str
    parts: tuple[WeightTensor, ...]

    @property
    def dtype(self) -> str:
        dtypes = {part.dtype for part in self.parts}
        return dtypes.pop() if len(dtypes) == 1 else "F32"  # which holds the values of all

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.parts), *self.parts[0].shape)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple({file: None for part in self.parts for file in part.files})

    def read_rows(self, files: WeightFiles, start: int, stop: int) -> NDArray[Any]:
        """See `WeightTensor`; rows count on from part to part."""
        import numpy as np

        rows = math.prod(self.parts[0].shape[:-1])
        pieces = []
        for number in range(start // rows, -(-stop // rows)):
            first = number * rows
            bounds = max(start, first) - first, min(stop, first + rows) - first
            piece = self.parts[number].read_rows(files, *bounds)
            pieces.append(to_float32(piece) if self.dtype == "F32" else piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


@contextmanager
def opened(tensors: Iterable[WeightTensor]) -> Iterator[WeightFiles]:
    """The files of tensors, open for `read_rows`. Raises CheckpointError when one is gone."""
    files = WeightFiles()
    files.open({file for tensor in tensors for file in tensor.files})
    try:
        yield files
    finally:
        files.close()


def row_ranges(rows: int, columns: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Split `rows` into ranges of about `PIECE_ELEMENTS` weights, each a multiple of `multiple` rows."""
    step = max(1, PIECE_ELEMENTS // (columns * multiple)) * multiple
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def to_float32(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Widen what `read_rows` gave of a float dtype; float32 holds every float16 and bfloat16 exactly."""
    import numpy as np

    if rows.dtype == np.uint16:
        bits: NDArray[np.uint32] = np.left_shift(rows, 16, dtype=np.uint32)
        return bits.view(np.float32)
    return rows.astype(np.float32, copy=False)


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Round to one of `FLOAT_DTYPES`, to the nearest and in the middle to even: in the type that `read_rows` gives."""
    import numpy as np

    if dtype == "F32":
        return values
    if dtype == "F16":
        with np.errstate(over="ignore"):  # `Weights.read_rows` finds the infinity
            return values.astype(np.float16)
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    rounded[np.isnan(values)] = 0x7FC0  # rounding may have changed its bits
    return rounded.astype(np.uint16)


_EXPONENTS = {"f4": ("u4", 0x7F800000), "f2": ("u2", 0x7C00), "u2": ("u2", 0x7F80)}
"""Unsigned type of the same width, and the bits of the exponent: all set in infinities and NaNs."""


def first_not_finite(rows: NDArray[Any]) -> int | None:
    """Position of the first NaN or infinity in what `read_rows` gave of a float dtype; None where there is none."""
    import numpy as np

    if rows.size == 0:
        return None
    view, mask = _EXPONENTS[rows.dtype.str[1:]]
    exponents = rows.reshape(-1).view(view) & np.dtype(view).type(mask)
    return int(exponents.argmax()) if int(exponents.max()) == mask else None
