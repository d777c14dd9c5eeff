"""Work in bounded pieces: ranges of rows, computed in parallel and written in their order.

Memory is bounded by (pieces in flight) x (size of a piece), whatever the size of the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from localq.hardware import available_logical_cores


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one artifact: computed in a worker thread, written in the caller's."""

    source_bytes: int
    """Bytes of the checkpoint that it reads."""
    compute: Callable[[], Any]
    write: Callable[[Any], None]
    """Called with the result of `compute`."""


def write_pieces(forms: Sequence[Iterable[Piece]], pool: WorkerPool, advance: Callable[[int], None]) -> None:
    """Make all artifacts side by side, so that each part of the checkpoint is read for all of them at the same time.

    It is then read from the disk once, and later from the system's cache. `advance` gets the source bytes of each
    piece that is written.
    """
    pieces = _interleaved(forms)
    for piece, result in pool.in_order(pieces, lambda piece: piece.compute()):
        piece.write(result)
        advance(piece.source_bytes)


def _interleaved(forms: Sequence[Iterable[Piece]]) -> Iterator[Piece]:
    """The next piece is always of the artifact that is furthest behind in the checkpoint."""
    iterators = {number: iter(form) for number, form in enumerate(forms)}
    positions = dict.fromkeys(iterators, 0)
    while positions:
        last = min(positions, key=positions.__getitem__)
        piece = next(iterators[last], None)
        if piece is None:
            del positions[last]
        else:
            positions[last] += piece.source_bytes
            yield piece


Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkerPool:
    """Threads that compute ahead of the consumer."""

    def __init__(self) -> None:
        # One more than cores: while one thread waits for the disk, the others keep all cores busy.
        self.threads = available_logical_cores() + 1
        self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix="localq-convert")

    def in_order(self, items: Iterable[Item], compute: Callable[[Item], Result]) -> Iterator[tuple[Item, Result]]:
        """Items and their results in order, with at most two per thread computed or waiting."""
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                waiting.append((item, self._executor.submit(compute, item)))
                if len(waiting) >= 2 * self.threads:
                    yield _finished(waiting.popleft())
            while waiting:
                yield _finished(waiting.popleft())
        finally:
            for _, future in waiting:
                future.cancel()

    def submit(self, compute: Callable[[], Result]) -> Future[Result]:
        """Start to compute something that pieces will need."""
        return self._executor.submit(compute)

    def close(self) -> None:
        """Cancel what has not started, wait for the rest."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _finished(waiting: tuple[Item, Future[Result]]) -> tuple[Item, Result]:
    item, future = waiting
    return item, future.result()


@contextmanager
def worker_pool() -> Iterator[WorkerPool]:
    """A pool that is closed at the end, also after an error or Ctrl-C."""
    pool = WorkerPool()
    try:
        yield pool
    finally:
        pool.close()
