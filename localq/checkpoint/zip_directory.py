"""Which entry of a zip file lies where. Reads no entry, and knows not what they are.

Format: PKWARE's APPNOTE 6.3. The directory at the end of the file is read by Python's `zipfile`; where the bytes of
an entry start stands only in the header before them, whose name fields differ in length from the directory's.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from localq.errors import CheckpointError

_LARGEST_DIRECTORY_BYTES = 4_000_000
"""Some 30,000 entries; a checkpoint has one for each tensor of a file."""

_SIGNATURE = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature; then, after what the directory says as well, the lengths of the name and of the extra field."""

_UTF8_NAME, _ENCRYPTED = 0x800, 0x1
_DAMAGED_HINT = "the file is damaged or only partly downloaded: download it again"


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One stretch of a file."""

    offset: int
    """First byte, from the start of the file."""
    nbytes: int
    crc32: int
    """Of what it holds, as the directory says; nothing is checked against it here."""
    is_stored: bool
    """As it is: neither compressed nor encrypted."""


def read_zip_directory(file: Path) -> dict[str, ZipEntry]:
    """Every entry by name. Raises CheckpointError for a damaged directory, entries that lie over each other or
    beyond the file, and names that stand twice; OSError where the file can't be read.
    """
    with _BoundedFile(file) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                entries = _locate(stream, archive.infolist(), archive.start_dir)
        except (zipfile.BadZipFile, NotImplementedError, OverflowError, ValueError, struct.error) as error:
            raise CheckpointError(f"{file} is no complete zip archive: {error}", _DAMAGED_HINT) from error
    return entries


class _BoundedFile(io.FileIO):
    """`zipfile` reads a directory as long as the file says it is, in one piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGEST_DIRECTORY_BYTES:
            raise ValueError(f"a directory of {size:,} bytes")
        return super().read(size) or b""


def _locate(stream: _BoundedFile, infos: list[zipfile.ZipInfo], directory_offset: int) -> dict[str, ZipEntry]:
    entries: dict[str, ZipEntry] = {}
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end or info.filename in entries:
            raise ValueError(f"entry {info.filename!r} lies over another, or stands twice")
        offset = _data_offset(stream, info)
        end = offset + info.compress_size
        if end > directory_offset:
            raise ValueError(f"entry {info.filename!r} reaches beyond the entries")
        is_stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        encrypted = bool(info.flag_bits & _ENCRYPTED)
        entries[info.filename] = ZipEntry(offset, info.compress_size, info.CRC, is_stored and not encrypted)
    return entries


def _data_offset(stream: _BoundedFile, info: zipfile.ZipInfo) -> int:
    stream.seek(info.header_offset)
    name_length: int
    extra_length: int
    signature, name_length, extra_length = _LOCAL_HEADER.unpack(stream.read(_LOCAL_HEADER.size))
    name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8_NAME else "cp437")
    if signature != _SIGNATURE or stream.read(name_length) != name:
        raise ValueError(f"entry {info.filename!r} is not where the directory says")
    return info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
