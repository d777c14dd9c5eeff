"""Files that are copied without taking room, where the file system can do that."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal

How = Literal["reflink", "hard link", "copy"]
"""A reflink shares the room on the disk until one of the two files changes; a hard link is the same file, whose changes
are seen under both names."""

_FICLONE = 0x40049409  # linux/fs.h


def copy_file(
    source: Path, target: Path, *, may_link: bool = False, before_copy: Callable[[], None] = lambda: None
) -> How:
    """Make `target`, synced: a reflink, else, with `may_link`, a hard link, else a copy. Raises OSError.

    `source` is read through links. `before_copy` is called where room is needed. After an error there may be a part of
    `target`.
    """
    source = source.resolve()
    how: How = "reflink"
    if not _reflink(source, target):
        how = "hard link" if may_link and _link(source, target) else "copy"
    if how == "copy":
        before_copy()
        shutil.copyfile(source, target)
    descriptor = os.open(target, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return how


def _reflink(source: Path, target: Path) -> bool:
    if sys.platform == "darwin":
        library = ctypes.CDLL(None, use_errno=True)
        return not library.clonefile(os.fsencode(source), os.fsencode(target), 0)
    with source.open("rb") as read, target.open("xb") as written:
        try:
            fcntl.ioctl(written.fileno(), _FICLONE, read.fileno())
        except OSError:
            target.unlink()
            return False
    return True


def _link(source: Path, target: Path) -> bool:
    with suppress(OSError):  # another file system, or one without links
        os.link(source, target)
        return True
    return False
