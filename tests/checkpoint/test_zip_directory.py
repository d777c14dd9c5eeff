"""Where the entries of a zip file are, compared with what Python reads, and zip files with wrong directories."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from localq.checkpoint.zip_directory import read_zip_directory
from localq.errors import CheckpointError

CONTENTS = {"a/data.pkl": b"pickle", "a/data/0": bytes(range(200)), "a/é": b"", "b": b"x" * 70}


def zip_of(compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytearray:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in CONTENTS.items():
            archive.writestr(name, content)
        archive.comment = comment
    return bytearray(stream.getvalue())


@pytest.mark.parametrize("start", [b"", b"something before it"])
@pytest.mark.parametrize("comment", [b"", b"a comment"])
def test_entries_are_found_where_their_bytes_are(tmp_path: Path, start: bytes, comment: bytes) -> None:
    raw = start + zip_of(comment=comment)
    (tmp_path / "file").write_bytes(raw)
    entries = read_zip_directory(tmp_path / "file")
    assert {name: raw[e.offset : e.offset + e.nbytes] for name, e in entries.items()} == CONTENTS
    assert all(entry.is_stored for entry in entries.values())
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert {name: entry.crc32 for name, entry in entries.items()} == {i.filename: i.CRC for i in archive.filelist}


def test_an_entry_beyond_four_gigabytes_is_found(tmp_path: Path) -> None:
    """The file is a hole: nothing of that size is written."""
    file = tmp_path / "file"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", b"first")
        archive.writestr("b", b"second")
    raw = file.read_bytes()
    second, directory = raw.rindex(b"PK\x03\x04"), raw.index(b"PK\x01\x02")
    far = 5 * 2**30
    entries = [raw[directory : raw.rindex(b"PK\x01\x02")], bytearray(raw[raw.rindex(b"PK\x01\x02") : -22])]
    entries[1][30:32] = struct.pack("<H", 12)  # an extra field that holds the true offset
    entries[1][42:46] = b"\xff" * 4
    entries[1] += struct.pack("<HHQ", 1, 8, far)
    listing = b"".join(entries)
    with file.open("r+b") as stream:
        stream.truncate(second)
        stream.seek(far)
        stream.write(raw[second:directory])
        start = stream.tell()
        stream.write(listing)
        end = stream.tell()
        stream.write(struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, len(listing), start))
        stream.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1))
        stream.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(listing), 0xFFFFFFFF, 0))
    found = read_zip_directory(file)["b"]
    with file.open("rb") as stream:
        stream.seek(found.offset)
        assert found.offset > far and stream.read(found.nbytes) == b"second"


def test_compressed_and_encrypted_entries_are_marked(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(zip_of(zipfile.ZIP_DEFLATED))
    assert not read_zip_directory(tmp_path / "file")["b"].is_stored
    raw = zip_of()
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "file").write_bytes(raw)
    assert not read_zip_directory(tmp_path / "file")["a/data.pkl"].is_stored


def of_first_entry(field: int, code: str, value: int) -> Callable[[bytearray], None]:
    """Changes a field of the first entry of the directory."""
    return lambda raw: struct.pack_into(code, raw, raw.index(b"PK\x01\x02") + field, value)


def of_the_end(field: int, code: str, value: int) -> Callable[[bytearray], None]:
    return lambda raw: struct.pack_into(code, raw, raw.rindex(b"PK\x05\x06") + field, value)


def overlap(raw: bytearray) -> None:
    """The second entry's bytes are inside the first one's."""
    struct.pack_into("<LL", raw, raw.index(b"PK\x01\x02") + 20, 100, 100)


def same_header(raw: bytearray) -> None:
    """Two entries of equal names' length that share one header."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("one", b"1")
        archive.writestr("two", b"2")
    raw[:] = stream.getvalue()
    struct.pack_into("<L", raw, raw.rindex(b"PK\x01\x02") + 42, 0)


def twice(raw: bytearray) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("one", b"1")
        archive.writestr("two", b"2")
    raw[:] = stream.getvalue().replace(b"two", b"one")


@pytest.mark.parametrize(
    "change",
    [
        overlap,
        same_header,
        twice,
        of_first_entry(42, "<L", 7),
        of_first_entry(42, "<L", 2**31),
        of_first_entry(20, "<L", 2**31),
        of_first_entry(46, "<B", ord("z")),
        of_first_entry(6, "<H", 99),
        of_first_entry(28, "<H", 60_000),
        of_the_end(12, "<L", 2**31),
        of_the_end(16, "<L", 2**31),
        of_the_end(16, "<L", 3),
    ],
)
def test_a_directory_with_wrong_entries_is_refused(tmp_path: Path, change: Callable[[bytearray], None]) -> None:
    raw = zip_of()
    change(raw)
    (tmp_path / "file").write_bytes(raw)
    with pytest.raises(CheckpointError, match="not a complete zip archive") as caught:
        read_zip_directory(tmp_path / "file")
    assert caught.value.hint


def test_a_directory_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    size = 2**33
    with (tmp_path / "file").open("wb") as stream:
        stream.write(b"PK\x03\x04")
        os.truncate(stream.fileno(), size)
        stream.seek(size)
        stream.write(struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, size, 0))
        stream.write(struct.pack("<4sLQL", b"PK\x06\x07", 0, size, 1))
        stream.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFFF, 0, 0))
    with pytest.raises(CheckpointError, match="a directory of"):
        read_zip_directory(tmp_path / "file")
