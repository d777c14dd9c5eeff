"""Files that are written and hashed in a thread of their own."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from localq.conversion.output import HashedOutput
from localq.errors import StoreError


def test_bytes_and_digest_are_those_that_were_written_in_order(tmp_path: Path) -> None:
    pieces = [os.urandom(1 + 997 * number % 70_000) for number in range(60)]
    with HashedOutput(tmp_path / "file") as output:
        for piece in pieces:
            output.write(piece)
    whole = b"".join(pieces)
    assert output.path.read_bytes() == whole
    assert output.written.bytes == len(whole)
    assert output.written.sha256 == hashlib.sha256(whole).hexdigest()


class FullDisk:
    """A stream whose third write fails."""

    closed = False
    writes = 0

    def write(self, data: bytes) -> None:
        self.writes += 1
        if self.writes > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("pieces", [3, 20])
def test_a_full_disk_is_told_by_a_later_write_or_at_the_end(tmp_path: Path, pieces: int) -> None:
    with pytest.raises(StoreError, match="is full"), HashedOutput(tmp_path / "file") as output:
        output._stream.close()
        output._stream = FullDisk()  # type: ignore[assignment]
        for _ in range(pieces):
            output.write(b"piece")
    assert output._stream.closed
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("localq-write")]
