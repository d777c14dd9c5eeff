"""What every quantization method needs: the stored parts of a weight, found and checked, and the tensor they make.

Knows no method and no packing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.checkpoint.tensors import StoredTensor, WeightFiles, WeightTensor, from_float32
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
    """By what the method calls them, such as `qweight`."""

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple({part.file: None for part in self.parts.values()})

    def read_rows(self, files: WeightFiles, start: int, stop: int) -> NDArray[Any]:
        """See `WeightTensor`. Damaged scales may give NaN or infinity, which whoever reads the rows finds."""
        import numpy as np

        with np.errstate(all="ignore"):
            return from_float32(self.values(files, start, stop), self.dtype)

    def values(self, files: WeightFiles, start: int, stop: int) -> NDArray[np.float32]:
        """The rows before they are rounded to `dtype`, shape (rows, columns)."""
        raise NotImplementedError


class StoredParts:
    """The tensors of a checkpoint, from which the methods take those that are parts of quantized weights."""

    def __init__(self, tensors: Mapping[str, WeightTensor]) -> None:
        self._rest = dict(tensors)

    @property
    def rest(self) -> Mapping[str, WeightTensor]:
        """What was not taken."""
        return self._rest

    def stems(self, suffix: str) -> list[str]:
        """What stands before `suffix` in the names that end with it."""
        return [name.removesuffix(suffix) for name in self._rest if name.endswith(suffix)]

    def has(self, name: str) -> bool:
        return name in self._rest

    def take(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...] | None = None) -> StoredTensor:
        """Take a tensor out; raises CheckpointError if it is not there, or not of these dtypes and this shape."""
        tensor = self._rest.get(name)
        if tensor is None:
            raise CheckpointError(
                f"the checkpoint has no tensor {name}, which its quantized weights need", "download it again"
            )
        if not isinstance(tensor, StoredTensor):
            raise UnsupportedModelError(f"tensor {name} is not stored in one piece", TAKE_THE_ORIGINAL)
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
            raise CheckpointError(f"tensor {name} has shape {tensor.shape} and is no matrix", "download it again")
        return tensor

    def drop(self, suffixes: tuple[str, ...]) -> None:
        """Leave out the tensors whose names end so: what a conversion to floats has no use for."""
        self._rest = {name: tensor for name, tensor in self._rest.items() if not name.endswith(suffixes)}


@contextmanager
def opened(tensors: list[StoredTensor]) -> Iterator[WeightFiles]:
    """The files of tensors that must be read before anything is converted: small ones."""
    files = WeightFiles()
    files.open({tensor.file for tensor in tensors})
    try:
        yield files
    finally:
        files.close()


def integer_setting(settings: Mapping[str, Any], key: str) -> int:
    """A number that the quantization settings must give; raises CheckpointError."""
    value = settings.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"the quantization settings say {key} = {value!r}", "a number must stand there")
    return value


def group_size_of(settings: Mapping[str, Any], columns: int) -> int:
    """Columns that share a scale: `group_size`, of which -1 means all of them. Raises CheckpointError."""
    size = integer_setting(settings, "group_size")
    if size == -1:
        return columns
    if size <= 0:
        raise CheckpointError(f"the quantization settings say group_size = {size}", "it is -1, or 1 and more")
    return min(size, columns)


def group_count(elements: int, group_size: int) -> int:
    """The last group may be shorter."""
    return -(-elements // group_size)
