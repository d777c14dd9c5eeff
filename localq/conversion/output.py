"""A file that is hashed while it is written, so that it is not read again for the manifest."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from localq.disk import disk_errors, reason
from localq.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A finished file of an artifact."""

    path: Path
    bytes: int
    sha256: str


class HashedOutput:
    """Sequential writes to a new file; `written` has size and SHA-256 after the `with` block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self._digest = hashlib.sha256()
        with disk_errors(path.parent):
            self._stream = path.open("xb")

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""
        with disk_errors(self.path.parent):
            self._stream.write(data)
        self._digest.update(data)
        self.position += len(data)

    @property
    def written(self) -> WrittenFile:
        return WrittenFile(self.path, self.position, self._digest.hexdigest())

    def __enter__(self) -> HashedOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Sync and close; a second time does nothing."""
        if self._stream.closed:
            return
        try:
            if error is None:
                with disk_errors(self.path.parent):
                    self._stream.flush()
                    os.fsync(self._stream.fileno())
        finally:
            with suppress(OSError):  # a failed flush was raised above
                self._stream.close()


def hashed_copy(source: Path, target: Path) -> WrittenFile:
    """Copy a small file of a checkpoint; raises CheckpointError when it can't be read."""
    try:
        data = source.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{source} can't be read: {reason(error)}", "check that it still exists") from error
    with HashedOutput(target) as output:
        output.write(data)
    return output.written


def hashed_text(text: str, target: Path) -> WrittenFile:
    """Write a small text file as UTF-8."""
    with HashedOutput(target) as output:
        output.write(text.encode())
    return output.written
