"""Takes files out of the operating system's cache, so that they are read from the disk next time."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_MOST_LEFT = 0.01
"""Share of a file's pages that may still be in memory: other programs read files too."""


def drop_from_cache(files: Iterable[Path]) -> bool:
    """Take the files out of the cache. Returns whether that worked, as `mincore` sees it.

    It does not where the system has no such call (macOS), where another process has a file mapped, on file systems
    that lie in memory, and (on Linux) for files that this user may not write.
    """
    return hasattr(os, "posix_fadvise") and all([_drop(file) for file in files])


def _drop(file: Path) -> bool:
    try:
        with file.open("rb", buffering=0) as opened:
            os.fsync(opened.fileno())  # pages that are not on the disk yet stay
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            return _resident_share(opened.fileno()) <= _MOST_LEFT
    except OSError:
        return False


def _resident_share(descriptor: int) -> float:
    """Share of a file's pages that are in memory; 1 where the system does not say."""
    size = os.fstat(descriptor).st_size
    if size == 0:
        return 0.0
    # Private and writable, because ctypes gives no address of what is read-only; nothing is written.
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages)
        del start  # the map can't be closed as long as something points into it
    return 1.0 if failed else sum(page & 1 for page in bytes(pages)) / len(pages)
