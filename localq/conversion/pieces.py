"""Work in bounded pieces: ranges of rows, and results of parallel work in their order.

Memory is bounded by (pieces in flight) x (size of a piece), whatever the size of the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from localq.engines.availability import available_logical_cores

Result = TypeVar("Result")

PIECE_ELEMENTS = 1 << 20
"""Weights per piece: 4 MiB as float32."""


def row_ranges(rows: int, columns: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """Split `rows` into ranges of about `PIECE_ELEMENTS` weights, each a multiple of `multiple` rows."""
    step = max(1, PIECE_ELEMENTS // (columns * multiple)) * multiple
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


class WorkerPool:
    """Threads that compute pieces ahead of the one who consumes them."""

    def __init__(self) -> None:
        self.threads = available_logical_cores()
        self._executor = ThreadPoolExecutor(self.threads, thread_name_prefix="localq-convert")

    def in_order(self, tasks: Iterable[Callable[[], Result]]) -> Iterator[Result]:
        """Results of `tasks` in their order, with at most two pieces per thread computed or waiting."""
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(self._executor.submit(task))
                if len(waiting) >= 2 * self.threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Drop what has not begun, wait for what has."""
        self._executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def worker_pool() -> Iterator[WorkerPool]:
    """A pool that is closed at the end, also after an error or Ctrl-C."""
    pool = WorkerPool()
    try:
        yield pool
    finally:
        pool.close()
