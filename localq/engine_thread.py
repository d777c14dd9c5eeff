"""Threads that load models and compute with them.

MLX's streams belong to the thread that made them: a model is loaded, used and closed in one thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_Result = TypeVar("_Result")


class EngineThread:
    """Runs one thing after the other, until the process ends.

    The thread never ends by itself: what MLX keeps for a thread asks for Python's lock when the thread is over, and
    that aborts a process whose interpreter is ending at that moment.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name="localq-engine", daemon=True).start()

    def start(self, function: Callable[[], _Result]) -> Future[_Result]:
        """Run something in the background."""
        future: Future[_Result] = Future()

        def work() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._work.put(work)
        return future

    def _serve(self) -> None:
        while True:
            self._work.get()()

    def run(self, function: Callable[[], _Result]) -> _Result:
        """Run something and wait for it. Raises what it raises."""
        return self.start(function).result()


_idle: list[EngineThread] = []


def borrow_engine_thread() -> EngineThread:
    """A thread that nobody uses; `return_engine_thread` lets another caller have it."""
    try:
        return _idle.pop()
    except IndexError:
        return EngineThread()


def return_engine_thread(thread: EngineThread) -> None:
    """The caller needs it no longer. It waits for the next caller: it must not end."""
    _idle.append(thread)
