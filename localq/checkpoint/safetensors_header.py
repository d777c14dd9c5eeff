"""The header of a safetensors file: which tensor lies where. Reads no weights.

The rules are those of the format's own description: 8 bytes of little-endian length, a JSON object that
starts with `{`, byte ranges that follow each other without holes or overlaps and end with the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localq.errors import CheckpointError

_LONGEST_HEADER_BYTES = 100_000_000  # the format's own limit
_DAMAGED_HINT = "the file is damaged or only partly downloaded: download it again"

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
DTYPE_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8}
"""Bytes of one element, by the format's dtype names."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes are."""

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


def read_header(file: Path) -> list[StoredTensor]:
    """Every tensor of a file, in file order. Raises CheckpointError that names the file and the fault."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER_BYTES):
                raise CheckpointError(f"{file} is no complete safetensors file ({size} bytes)", _DAMAGED_HINT)
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} can't be read: {error.strerror}") from error
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise CheckpointError(f"{file} has an unreadable header", _DAMAGED_HINT) from error
    if not raw.startswith(b"{") or not isinstance(header, dict):
        raise CheckpointError(f"{file} has an unreadable header", _DAMAGED_HINT)
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = [_parse_entry(file, name, entry, start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: tensor.offset)
    _check_ranges(file, tensors, header, start, size)
    return tensors


def _parse_entry(file: Path, name: str, entry: Any, start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        tensor = StoredTensor(name, dtype, shape, file, start + begin)
        counts_are_natural = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end))
        consistent = counts_are_natural and end - begin == tensor.nbytes
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: the entry of tensor {name} is malformed", _DAMAGED_HINT) from error
    if not consistent:
        raise CheckpointError(f"{file}: tensor {name} says {entry}, which does not add up", _DAMAGED_HINT)
    return tensor


def _check_ranges(file: Path, tensors: list[StoredTensor], header: dict[str, Any], start: int, size: int) -> None:
    position = start
    for tensor in tensors:
        if tensor.offset != position:
            raise CheckpointError(f"{file}: tensor {tensor.name} overlaps another or leaves a hole", _DAMAGED_HINT)
        position += tensor.nbytes
    if position != size:
        raise CheckpointError(
            f"{file} is {size:,} bytes long, its {len(header)} tensors need {position:,}",
            _DAMAGED_HINT,
        )
