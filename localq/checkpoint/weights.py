"""The weights of a checkpoint: tensors by name, read lazily and in ranges of rows.

Knows nothing of families or of what the tensors are for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from localq.checkpoint.tensors import WeightFiles, WeightTensor, first_not_finite, to_float32
from localq.checkpoint.weight_files import SAFETENSORS, find_weight_files
from localq.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INDEX_NAME = SAFETENSORS.index_name
SINGLE_NAME = SAFETENSORS.single_name
"""What localq itself writes and pulls."""


class Weights:
    """Tensors of one checkpoint. A context manager; thread-safe for reading."""

    def __init__(self, tensors: Mapping[str, WeightTensor]) -> None:
        self._tensors = tensors
        self._files = WeightFiles()

    @property
    def tensors(self) -> Mapping[str, WeightTensor]:
        """Every tensor by name."""
        return self._tensors

    def files(self) -> list[Path]:
        """The weight files, each once."""
        return sorted({file for tensor in self._tensors.values() for file in tensor.files})

    def __enter__(self) -> Weights:
        """Open the files for `read_rows`. Raises CheckpointError when one is gone."""
        self._files.open(self.files())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor as `WeightTensor.read_rows` gives them, every value of them finite.

        Raises CheckpointError for a NaN or an infinity, and for a file that ends early.
        """
        tensor = self._tensors[name]
        rows = tensor.read_rows(self._files, start, stop)
        position = first_not_finite(rows)
        if position is not None:
            value = to_float32(rows.reshape(-1)[position : position + 1])[0]
            row = start + position // math.prod(rows.shape[1:])
            raise CheckpointError(
                f"tensor {name} holds {value} in row {row:,}",
                "the weights are damaged, or a merge or a fine-tune failed: no form of them would give right answers",
            )
        return rows

    def read_rows_float32(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `read_rows`, widened to float32."""
        return to_float32(self.read_rows(name, start, stop))


def find_weights(folder: Path) -> Weights:
    """The weights of a checkpoint folder. Reads headers only.

    Raises CheckpointError for missing, truncated, duplicate or outlying files, and for tensors that are in two files
    or in another one than the index says.
    """
    found = find_weight_files(folder)
    homes: dict[str, Path] = {}
    tensors: dict[str, WeightTensor] = {}
    # Whatever the files hold, named by the index or not: nothing is dropped silently.
    for file in found.files:
        for tensor in found.format.read(file):
            if tensor.name in homes:
                raise CheckpointError(
                    f"tensor {tensor.name} is in {homes[tensor.name].name} and in {file.name}",
                    "one of them belongs to another checkpoint: download them into an empty folder",
                )
            homes[tensor.name], tensors[tensor.name] = file, tensor
    for name, file_name in found.weight_map.items():
        if name not in homes or homes[name].name != file_name:
            raise CheckpointError(
                f"{found.format.index_name} says that {file_name} holds {name}, and it does not", "download both again"
            )
    return Weights(tensors)
