"""Locks: one process at a time writes or deletes an artifact. The system releases the lock of a process that ended.

Some network folders have no working locks. Then nobody waits, and work may be done twice.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN)


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that this process holds."""

    works: bool
    """Whether it keeps other processes out."""


@contextmanager
def held_lock(file: Path, on_wait: Callable[[], None]) -> Iterator[Lock]:
    """Hold the lock of `file`, which is made; waits for the process that holds it, after a call of `on_wait`.

    Raises OSError where the file can't be opened. Threads of one process wait for each other as well.
    """
    descriptor = _opened(file)
    try:
        is_locked = _try_to_lock(descriptor)
        if is_locked is False:
            on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Lock(is_locked is not None and _keeps_others_out(file))
    finally:
        os.close(descriptor)


@contextmanager
def free_lock(file: Path) -> Iterator[Lock | None]:
    """As `held_lock`, without waiting: None where another process holds it."""
    descriptor = _opened(file)
    try:
        is_locked = _try_to_lock(descriptor)
        works = is_locked is True and _keeps_others_out(file)
        yield None if is_locked is False else Lock(works)
    finally:
        os.close(descriptor)


def _opened(file: Path) -> int:
    file.parent.mkdir(parents=True, exist_ok=True)
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def _try_to_lock(descriptor: int) -> bool | None:
    """False where another process holds the lock; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True


def _keeps_others_out(file: Path) -> bool:
    """Whether the lock that is held is refused to a second opening of the file: some file systems ignore locks."""
    descriptor = _opened(file)
    try:
        return _try_to_lock(descriptor) is False
    finally:
        os.close(descriptor)
