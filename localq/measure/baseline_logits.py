"""The baseline's logits in a temporary file, for the forms that are compared with it: float32, a row per position.

The file has no name: the operating system deletes it when no process has it open any more. So Ctrl-C, an error or a
killed process leave nothing behind. Float32 is what the engines compute. In float16 the file is half as large, but
then rounding alone gives a mean divergence of 1e-8 nats on the toys and 7e-7 on a vocabulary of 128,256, where the
noise floor of the engines is 3e-12.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localq.disk import ELSEWHERE_HINT, disk_errors
from localq.errors import StoreError
from localq.tables import format_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FLOAT32_BYTES = 4

_SPARE_BYTES = 32 << 20
"""Left free on the disk."""


@dataclass(frozen=True, slots=True)
class LogitsFile:
    """The open file, as two processes use it one after the other."""

    descriptor: int
    folder: str
    """On whose disk the file is, for errors."""

    def write(self, first_row: int, logits: NDArray[np.float32]) -> None:
        """Write logits of shape (rows, vocabulary size). Raises StoreError."""
        with disk_errors(Path(self.folder)), open(self.descriptor, "r+b", closefd=False) as stream:
            stream.seek(first_row * logits.shape[1] * FLOAT32_BYTES)
            stream.write(logits.astype("<f4", order="C", copy=False).data)

    def read(self, first_row: int, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Logits of a shape (rows, vocabulary size) that were written before. Raises StoreError."""
        import numpy as np

        rows = np.empty(shape, dtype="<f4")
        with disk_errors(Path(self.folder)), open(self.descriptor, "rb", closefd=False) as stream:
            stream.seek(first_row * shape[1] * FLOAT32_BYTES)
            stream.readinto(rows.data)
        return rows


@contextmanager
def unnamed_file(folder: Path) -> Iterator[LogitsFile]:
    """An empty file on the disk of `folder`, or of the system's temporary folder if `folder` is not writable.

    Raises StoreError.
    """
    with disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed below)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            folder = Path(tempfile.gettempdir())
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    with file:
        yield LogitsFile(file.fileno(), str(folder))


def require_room(folder: Path, window_bytes: int, windows: int) -> None:
    """Raise StoreError unless the disk of `folder` has room for so many windows of logits."""
    free_bytes = max(0, shutil.disk_usage(folder).free - _SPARE_BYTES)
    if window_bytes * windows <= free_bytes:
        return
    fitting = free_bytes // window_bytes
    less = f"evaluate less text with --windows {fitting}, or " if fitting else ""
    raise StoreError(
        f"the baseline's predictions take {format_bytes(window_bytes * windows)} for {windows} windows; "
        f"{folder} has {format_bytes(free_bytes)} free",
        f"{less}remove something (`localq rm`), or {ELSEWHERE_HINT}",
    )
