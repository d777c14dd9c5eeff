"""Importance matrices: how much each column of a tensor matters, in the files of llama.cpp's tools.

An entry has the sums of the squared inputs that a tensor was multiplied with, column by column. The files are those of
llama-imatrix: GGUF with `NAME.in_sum2` and `NAME.counts`, and the older `.dat`. Sources: `save_imatrix` in llama.cpp's
tools/imatrix/imatrix.cpp, `common_imatrix_load` in common/imatrix-loader.cpp, `load_imatrix` in
tools/quantize/quantize.cpp.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from localq.disk import reason, replacing, writing_errors
from localq.errors import CalibrationError, CheckpointError, ModelFileError
from localq.gguf_file import read_header

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DATASETS, _CHUNK_COUNT, _CHUNK_TOKENS = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_FLOAT32 = 0  # of `enum ggml_type`
_UINT32, _STRING, _ARRAY = 4, 8, 9  # of `enum gguf_type`
_ALIGNMENT_BYTES = 32
_LONGEST_NAME = 64  # `GGML_MAX_NAME`
_HINT = "give a file that llama-imatrix wrote, as GGUF or .dat"


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """Entries by GGUF tensor name, such as `blk.0.attn_q.weight`."""

    sums: Mapping[str, NDArray[np.float32]]
    """Sums of squared inputs, shape (experts, columns); experts is 1 for dense tensors.

    A `.dat` has the experts of a tensor one after the other in a single row.
    """
    counts: Mapping[str, NDArray[np.float32]]
    """What to divide the sums by: tokens, in a `.dat` chunks. Shape (experts,)."""
    datasets: tuple[str, ...] = ()
    """The texts, as the file names them."""
    chunk_count: int = 0
    chunk_tokens: int = 0
    """0 where the file does not say it."""

    def weights(self, name: str) -> NDArray[np.float32] | None:
        """The mean of the squared inputs, shape (experts, columns): what llama-quantize gives to ggml.

        An expert that got no token has 1 in every column. None for a tensor without an entry.
        """
        import numpy as np

        if name not in self.sums:
            return None
        counts = self.counts[name][:, None]
        return np.where(counts > 0, self.sums[name] / np.maximum(counts, 1), np.float32(1))


def read_importance(file: Path) -> ImportanceMatrix:
    """Read llama.cpp's GGUF or `.dat`. Raises CalibrationError for a missing, damaged or other file."""
    with _opened(file) as stream:
        is_gguf = stream.read(4) == b"GGUF"
        stream.seek(0)
        matrix = _read_gguf(file, stream) if is_gguf else _read_dat(file, stream)
    _require_valid(file, matrix)
    return matrix


def importance_digest(file: Path) -> str:
    """The SHA-256 of the file. Raises CalibrationError where it can't be read."""
    with _opened(file) as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def write_importance(file: Path, matrix: ImportanceMatrix) -> None:
    """Write or replace a file in llama.cpp's GGUF form, whole or not at all. Raises LocalqError."""
    import numpy as np

    tensors: dict[str, NDArray[np.float32]] = {}
    for name in sorted(matrix.sums):
        tensors[name + _SUMS] = matrix.sums[name]
        tensors[name + _COUNTS] = matrix.counts[name][:, None]
    values = [
        ("general.type", struct.pack("<I", _STRING) + _text("imatrix")),
        (_DATASETS, struct.pack("<IIQ", _ARRAY, _STRING, len(matrix.datasets)) + b"".join(map(_text, matrix.datasets))),
        (_CHUNK_COUNT, struct.pack("<II", _UINT32, matrix.chunk_count)),
        (_CHUNK_TOKENS, struct.pack("<II", _UINT32, matrix.chunk_tokens)),
    ]
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(values))]
    parts += [_text(key) + value for key, value in values]
    offset = 0
    for name, tensor in tensors.items():
        rows, columns = tensor.shape
        sizes = [columns, rows] if rows > 1 else [columns]  # as ggml writes a single row
        parts += [_text(name), struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, _FLOAT32, offset)]
        offset += _padded(tensor.size * 4)
    with writing_errors(file), replacing(file) as stream:
        header = b"".join(parts)
        stream.write(header.ljust(_padded(len(header)), b"\0"))
        for tensor in tensors.values():
            data = np.ascontiguousarray(tensor, "<f4").tobytes()
            stream.write(data.ljust(_padded(len(data)), b"\0"))


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    try:
        with file.open("rb") as stream:
            yield stream
    except OSError as error:
        raise CalibrationError(f"can't read the importance matrix {file}: {reason(error)}", _HINT) from error


def _text(text: str) -> bytes:
    data = text.encode(errors="replace")
    return struct.pack("<Q", len(data)) + data


def _padded(nbytes: int) -> int:
    return nbytes + -nbytes % _ALIGNMENT_BYTES


def _read_gguf(file: Path, stream: BinaryIO) -> ImportanceMatrix:
    import numpy as np

    try:
        header = read_header(file)
    except (CheckpointError, ModelFileError) as error:
        raise CalibrationError(error.message, _HINT) from error
    names = [tensor.removesuffix(_SUMS) for tensor in header.places if tensor.endswith(_SUMS)]
    chunks, tokens = (header.metadata.get(key) for key in (_CHUNK_COUNT, _CHUNK_TOKENS))
    if not names or not isinstance(chunks, int) or not isinstance(tokens, int):
        raise CalibrationError(f"{file} is a GGUF file, but not an importance matrix", _HINT)

    def values(tensor: str) -> NDArray[np.float32]:
        place = header.places.get(tensor)
        if place is None or place.type_number != _FLOAT32:
            raise _damaged(file, f"{tensor} is missing, or not float32")
        stream.seek(place.offset)
        return _floats(file, stream, place.nbytes // 4)

    sums, counts = {}, {}
    for name in names:
        entry, counted = values(name + _SUMS), values(name + _COUNTS)
        if len(entry) % len(counted):
            raise _damaged(file, f"{name} has {len(entry)} sums and {len(counted)} counts")
        sums[name], counts[name] = entry.reshape(len(counted), -1), np.floor(counted + np.float64(0.5)).astype("<f4")
    return ImportanceMatrix(sums, counts, header.texts.get(_DATASETS, ()), chunks, tokens)


def _read_dat(file: Path, stream: BinaryIO) -> ImportanceMatrix:
    import numpy as np

    def number() -> int:
        (value,) = struct.unpack("<i", _read(file, stream, 4))
        return int(value)

    sums, counts = {}, {}
    entries = number()
    if entries < 1:
        raise CalibrationError(f"{file} is not an importance matrix", _HINT)
    for _ in range(entries):
        name_bytes = number()
        if not 0 < name_bytes < _LONGEST_NAME:
            raise CalibrationError(f"{file} is not an importance matrix", _HINT)
        name = _read(file, stream, name_bytes).decode(errors="replace")
        # A file without calls has means already, and the others sums of a mean in each call.
        counts[name] = np.array([max(number(), 1)], np.float32)
        sums[name] = _floats(file, stream, number())[None, :]
    trailer = stream.read(8)
    if len(trailer) < 8:  # files of 2023 end here
        return ImportanceMatrix(sums, counts)
    chunk_count, text_bytes = struct.unpack("<ii", trailer)
    text = _read(file, stream, max(text_bytes, 0)).decode(errors="replace")
    return ImportanceMatrix(sums, counts, (text,) if text else (), max(chunk_count, 0))


def _read(file: Path, stream: BinaryIO, nbytes: int) -> bytes:
    left = file.stat().st_size - stream.tell()
    if nbytes > left:
        raise _damaged(file, f"it ends {nbytes - left:,} bytes too early")
    return stream.read(nbytes)


def _floats(file: Path, stream: BinaryIO, count: int) -> NDArray[np.float32]:
    import numpy as np

    if count < 1:
        raise _damaged(file, "an entry is empty")
    return np.frombuffer(_read(file, stream, 4 * count), "<f4")


def _damaged(file: Path, why: str) -> CalibrationError:
    return CalibrationError(f"the importance matrix {file} is damaged: {why}", "download the file or make it again")


def _require_valid(file: Path, matrix: ImportanceMatrix) -> None:
    """Raise for what is no sum of squares; ggml stops the process at some of it."""
    import numpy as np

    for name, sums in matrix.sums.items():
        for values in (sums, matrix.counts[name]):
            if not np.isfinite(values).all() or (values < 0).any():
                raise _damaged(file, f"{name} has a value below zero, infinite, or not a number")
