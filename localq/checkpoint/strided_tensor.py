"""A tensor whose elements lie apart in a file, such as a matrix that was transposed before it was saved."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.checkpoint.tensors import DTYPE_BYTES, StoredTensor, WeightFiles

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StridedTensor:
    """A matrix or vector as a view of a stretch of elements."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements from a row to the next, and from a column to the next; from an element to the next of a vector."""
    storage: StoredTensor
    """Shape (elements,): starts with the tensor's first element and reaches its last."""

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
        """See `WeightTensor`. Reads row by row or column by column, whichever lie closer together."""
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
