"""Where each entry of a zip file is. Reads no entry, and does not know what they are.

Format: PKWARE's APPNOTE 6.3. Python's `zipfile` reads the directory at the end of the file. Where the bytes of an entry
start follows only from the header before them, whose fields differ in length from the directory's.
"""

from __future__ import annotations

import io
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from localq.errors import CheckpointError
from localq.regular_files import open_descriptor

_LARGEST_DIRECTORY_BYTES = 4_000_000
"""About 30,000 entries; a checkpoint has one for each tensor of a file."""

_SIGNATURE = b"PK\x03\x04"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature; then, after fields that the directory has too, the lengths of the name and of the extra field."""

_UTF8_NAME, _ENCRYPTED = 0x800, 0x1
_DAMAGED_HINT = "the file is damaged or only partly downloaded: `localq pull --verify REPO` fetches it again"


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """The bytes of one entry, together in the file."""

    offset: int
    """First byte, from the start of the file."""
    nbytes: int
    crc32: int
    """Of the entry's contents, as the directory says; not checked here."""
    is_stored: bool
    """Neither compressed nor encrypted."""


def read_zip_directory(file: Path) -> dict[str, ZipEntry]:
    """Every entry by name. Raises CheckpointError for a damaged directory, entries that overlap or reach beyond the
    file, and names that are there twice; OSError where the file can't be read.
    """
    with _BoundedFile(open_descriptor(file)) as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                entries = _locate(stream, archive.infolist(), archive.start_dir)
        except (zipfile.BadZipFile, NotImplementedError, OverflowError, ValueError, struct.error) as error:
            raise CheckpointError(f"{file} is not a complete zip archive: {error}", _DAMAGED_HINT) from error
    return entries


class _BoundedFile(io.FileIO):
    """Limits the memory: `zipfile` reads a directory of whatever length the file says, in one piece."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LARGEST_DIRECTORY_BYTES:
            raise ValueError(f"a directory of {size:,} bytes")
        return super().read(size) or b""


def _locate(stream: _BoundedFile, infos: list[zipfile.ZipInfo], directory_offset: int) -> dict[str, ZipEntry]:
    entries: dict[str, ZipEntry] = {}
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end or info.filename in entries:
            raise ValueError(f"entry {info.filename!r} overlaps another, or is there twice")
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
