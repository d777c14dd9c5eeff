"""The weights of a checkpoint: tensors by name, read lazily and in ranges of rows.

Reads go through `pread`, never through a memory map: a file that shrinks while it is read is an error and
not a crash, and several threads can read at once. Knows nothing of families or of what the tensors are for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from localq.checkpoint.safetensors_header import DTYPE_BYTES, StoredTensor, read_header
from localq.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INDEX_NAME = "model.safetensors.index.json"
"""Names the weight file of every tensor, under `weight_map`; there when the weights are in several files."""

SINGLE_NAME = "model.safetensors"
FLOAT_DTYPES = ("F32", "F16", "BF16")
"""Dtypes that weights can be read in."""


class Weights:
    """Tensors of one checkpoint. A context manager; thread-safe for reading."""

    def __init__(self, tensors: Mapping[str, StoredTensor]) -> None:
        self._tensors = tensors
        self._descriptors: dict[Path, int] = {}

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by name."""
        return self._tensors

    def files(self) -> list[Path]:
        """The weight files, each once."""
        return sorted({tensor.file for tensor in self._tensors.values()})

    def open(self) -> None:
        """Open the files for `read_rows`. Called by `with`. Raises CheckpointError when one is gone."""
        for file in self.files():
            if file not in self._descriptors:
                try:
                    self._descriptors[file] = os.open(file, os.O_RDONLY)
                except OSError as error:
                    self.close()
                    raise CheckpointError(f"{file} can't be opened: {error.strerror}", "was it moved?") from error

    def close(self) -> None:
        """Close the files."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def __enter__(self) -> Weights:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows `start` to `stop` (not included) of a matrix, or elements of a vector.

        Shape (rows, columns) or (elements,); dtype float32, float16, or uint16 for the bits of bfloat16.
        Raises CheckpointError when the file ends early.
        """
        import numpy as np

        tensor = self._tensors[name]
        row_shape = tensor.shape[1:]
        dtype = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}[tensor.dtype]
        rows: NDArray[Any] = np.empty((stop - start, *row_shape), dtype=dtype)
        row_bytes = DTYPE_BYTES[tensor.dtype]
        for length in row_shape:
            row_bytes *= length
        self._read_into(rows, tensor, tensor.offset + start * row_bytes)
        return rows

    def read_rows_float32(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """As `read_rows`, widened to float32, which holds every float16 and bfloat16 exactly."""
        import numpy as np

        rows = self.read_rows(name, start, stop)
        if rows.dtype == np.uint16:
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32, copy=False)

    def _read_into(self, target: NDArray[Any], tensor: StoredTensor, offset: int) -> None:
        view = memoryview(target.reshape(-1).view("u1"))  # type: ignore[arg-type]  # numpy's stubs know no Buffer
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self._descriptors[tensor.file], [view[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{tensor.file} can't be read: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(f"{tensor.file} ended while tensor {tensor.name} was read", "was it changed?")
            done += count


def find_weights(folder: Path) -> Weights:
    """The weights of a checkpoint folder: the index's shards, one file, or shards without an index.

    Raises CheckpointError for missing, truncated, duplicate or outlying files; reads headers only.
    """
    index = folder / INDEX_NAME
    if index.exists():
        return _indexed_weights(folder, index)
    files = [folder / SINGLE_NAME] if (folder / SINGLE_NAME).exists() else sorted(folder.glob("model*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no safetensors weights", _advice_without_safetensors(folder))
    _check_complete_numbering(files)
    return Weights(_merged(files))


def _merged(files: Iterable[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for tensor in read_header(file):
            if tensor.name in tensors:
                raise CheckpointError(
                    f"tensor {tensor.name} is in {tensors[tensor.name].file.name} and in {file.name}",
                    "one of them belongs to another checkpoint: download them into an empty folder",
                )
            tensors[tensor.name] = tensor
    return tensors


def _indexed_weights(folder: Path, index: Path) -> Weights:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} can't be read as an index of shards", "download the file again") from error
    for file in files:
        if (
            not isinstance(file, str)
            or Path(file).name != file
            or file in ("", ".", "..")
            or "\\" in file
            or "\0" in file
        ):
            raise CheckpointError(
                f"{index.name} names {file!r}, which is not a file of this folder",
                "don't trust this checkpoint: an index names files beside it only",
            )
    missing = sorted(set(files) - {path.name for path in folder.iterdir()})
    if missing:
        more = " ..." if len(missing) > 3 else ""
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(files)} shards: {', '.join(missing[:3])}{more}",
            "download them; `localq pull org/name` takes up where a download stopped",
        )
    # Whatever the shards hold, named by the index or not: nothing is dropped silently.
    tensors = _merged(folder / file for file in files)
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            raise CheckpointError(f"{index.name} says that {file} holds {name}, and it does not", "download both again")
    return Weights(tensors)


def _check_complete_numbering(files: list[Path]) -> None:
    """Shards without an index number themselves: model-00001-of-00003.safetensors."""
    for file in files:
        _, of, count = file.stem.rpartition("-of-")
        if of and count.isdecimal() and int(count) != len(files):
            raise CheckpointError(
                f"{file.parent} has {len(files)} of {int(count)} shards, and no {INDEX_NAME}",
                "download the rest; `localq pull org/name` takes up where a download stopped",
            )


def _advice_without_safetensors(folder: Path) -> str:
    if any(folder.glob("pytorch_model*.bin")):
        return "it has pytorch_model*.bin, which localq does not read yet: save it as safetensors first"
    if any(folder.glob("*.gguf")):
        return "it has a .gguf file: name that file instead"
    return "give a folder with model.safetensors, or `localq pull org/name`"
