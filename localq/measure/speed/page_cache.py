"""Takes files out of the operating system's cache, so that the next reader has to ask the disk."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_MOST_LEFT = 0.01
"""Of the pages, that may still be in memory of a file that counts as gone: others look at files too."""


def form_files(path: Path) -> list[Path]:
    """The files that are read when a form is opened: those of a folder, or all parts of a `.gguf` file."""
    from localq.gguf_file import part_names

    files = [path.with_name(name) for name in part_names(path.name)] if path.is_file() else sorted(path.iterdir())
    return [file for file in files if file.is_file()]


def drop_from_page_cache(files: Iterable[Path]) -> bool:
    """Take the files out of the cache. Returns whether they are gone, as `mincore` sees it.

    They are not where the system has no such call (macOS), where another process has a file mapped, and on file systems
    that live in memory. Linux tells whose pages are in memory to those alone who may write the file.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    return all([_drop(file) for file in files])


def _drop(file: Path) -> bool:
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        os.fsync(descriptor)  # pages that are not on the disk yet stay
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return _resident_share(descriptor) <= _MOST_LEFT
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _resident_share(descriptor: int) -> float:
    """Share of a file's pages that are in memory; 1 where the system does not tell."""
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
