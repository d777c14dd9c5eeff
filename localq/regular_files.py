"""Files that come from strangers: only regular files are read, never a pipe, a device or a folder in their place.

Every error is an OSError whose text says what is wrong, for `localq.disk.reason`.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Unreadable(OSError):
    """What has the name of a file is no regular one, or too long."""


def is_there(path: Path) -> bool:
    """Whether there is anything of that name, also a link to nothing: what is no file is refused when it is read."""
    return os.path.lexists(path)


def require_regular(path: Path) -> os.stat_result:
    """The status of a regular file, or of the one that a link leads to; raises OSError for everything else."""
    try:
        status = path.stat()
    except FileNotFoundError:
        if path.is_symlink():
            raise Unreadable(errno.ELOOP, "it is a link to a file that is not there", str(path)) from None
        raise
    except ValueError as error:  # a zero byte in the name
        raise Unreadable(errno.EINVAL, str(error), repr(path)) from error
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise Unreadable(errno.EINVAL, f"it is {_KINDS.get(kind, 'not a file')}, not a regular file", str(path))
    return status


def open_descriptor(path: Path) -> int:
    """A descriptor to read a regular file from. Raises OSError; never waits for another program."""
    require_regular(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # it was exchanged meanwhile
        os.close(descriptor)
        raise Unreadable(errno.EINVAL, "it is not a regular file", str(path))
    return descriptor


def open_regular(path: Path) -> BinaryIO:
    """A stream to read a regular file from. Raises OSError as `open_descriptor`."""
    return os.fdopen(open_descriptor(path), "rb")


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file; raises OSError for a longer one before it is read."""
    with open_regular(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = b"" if size > most_bytes else stream.read(most_bytes + 1)
    if size > most_bytes or len(data) > most_bytes:
        raise Unreadable(errno.EFBIG, f"it has {max(size, len(data)):,} bytes, more than {most_bytes:,}", str(path))
    return data
