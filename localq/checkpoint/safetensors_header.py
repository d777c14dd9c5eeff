"""The header of a safetensors file: where each tensor is. Reads no weights.

The rules are those of the format's own description: 8 bytes of little-endian length, a JSON object that
starts with `{`, byte ranges that follow each other without gaps or overlaps and end with the file.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from localq.checkpoint.tensors import DTYPE_BYTES, StoredTensor, require_plain_name
from localq.disk import reason
from localq.errors import CheckpointError, UnsupportedModelError, shown
from localq.regular_files import open_regular

_LONGEST_HEADER_BYTES = 32 << 20
"""Ten times that of the largest known; the format's own limit is 100 MB."""
_MOST_TENSORS, _MOST_VALUES = 50_000, 1_000_000
"""More than any file has: what a hostile header may take of time and memory is bounded with them."""
_DAMAGED_HINT = "the file is damaged or only partly downloaded: download it again: `localq pull --verify REPO`"


def read_header(file: Path) -> list[StoredTensor]:
    """Every tensor of a file, in file order. Raises CheckpointError that names the file and the fault.

    Accepts nothing that the `safetensors` library refuses.
    """
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER_BYTES):
                raise CheckpointError(f"{file} is not a complete safetensors file ({size} bytes)", _DAMAGED_HINT)
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file} can't be read: {reason(error)}", _DAMAGED_HINT) from error
    start = 8 + length
    tensors = [_parse_entry(file, name, entry, start) for name, entry in _parse_entries(file, raw).items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))  # an empty tensor before its neighbour
    _check_ranges(file, tensors, start, size)
    return tensors


def _parse_entries(file: Path, raw: bytes) -> dict[str, Any]:
    """The header without its metadata. Refuses what Python's parser allows and the format does not."""
    try:
        if not raw.startswith(b"{") or sum(map(raw.count, (b",", b"[", b"{"))) > _MOST_VALUES:
            raise ValueError("not an object, or one of absurd size")
        header: dict[str, Any] = json.loads(
            raw.decode(), object_pairs_hook=_unique_keys, parse_int=_parse_natural, parse_constant=_parse_natural
        )
        "".join(header).encode()  # half a surrogate pair is not text
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is not text")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} has a header that can't be read", _DAMAGED_HINT) from error
    if len(header) > _MOST_TENSORS:
        raise CheckpointError(f"{file} has {len(header):,} tensors; no model has so many in a file", _DAMAGED_HINT)
    for name in header:
        require_plain_name(file, name)
    return header


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key is there twice")
    return unique


def _parse_natural(text: str) -> int:
    if not text.isdecimal():  # a sign, NaN or Infinity
        raise ValueError(f"{text} is not a natural number")
    return int(text)


def _parse_entry(file: Path, name: str, entry: Any, start: int) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: the header's entry of tensor {name} is wrong", _DAMAGED_HINT) from error
    if not (isinstance(dtype, str) and _is_shape(shape) and _is_length(begin) and _is_length(end)):
        raise CheckpointError(f"{file}: the header's entry of tensor {name} is wrong", _DAMAGED_HINT)
    if dtype not in DTYPE_BYTES:
        raise UnsupportedModelError(
            f"{file}: tensor {name} is of dtype {shown(dtype)}, which localq does not know",
            "take the unquantized checkpoint",
        )
    tensor = StoredTensor(name, dtype, tuple(shape), file, start + begin)
    if end - begin != tensor.nbytes:
        raise CheckpointError(
            f"{file}: tensor {name} of {dtype} {tensor.shape} does not fit into its {end - begin:,} bytes",
            _DAMAGED_HINT,
        )
    return tensor


def _is_shape(value: Any) -> bool:
    """Whether a numpy array may have this shape. This also limits the work of multiplying the lengths."""
    if not isinstance(value, list) or len(value) > 64 or not all(map(_is_length, value)):
        return False
    return math.prod(n or 1 for n in value) < 2**63


def _is_length(value: Any) -> bool:
    return type(value) is int and value < 2**63  # `type`, because True is an int as well


def _check_ranges(file: Path, tensors: list[StoredTensor], start: int, size: int) -> None:
    position = start
    for tensor in tensors:
        if tensor.offset != position:
            raise CheckpointError(f"{file}: tensor {tensor.name} overlaps another or leaves a gap", _DAMAGED_HINT)
        position += tensor.nbytes
    if position != size:
        raise CheckpointError(
            f"{file} is {size:,} bytes long, its {len(tensors)} tensors need {position:,}",
            _DAMAGED_HINT,
        )


def is_written_by_mlx(file: Path) -> bool:
    """Whether the header's metadata says `"format": "mlx"`, as MLX's own writer and mlx_lm put it.

    False for a file that can't be read: whoever opens it as a checkpoint says why.
    """
    try:
        with open_regular(file) as stream:
            start = stream.read(4096)
    except OSError:
        return False
    # Files of MLX have the metadata first: the rest of a long header need not be read.
    return b'"__metadata__"' in start and b'"format":"mlx"' in start.replace(b" ", b"")
