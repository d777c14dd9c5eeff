"""The one thread that loads models and computes with them, so that the keyboard is never without an answer.

MLX's streams belong to the thread that made them: a model is loaded, used and closed here.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from localq.conversation import Reply

_Result = TypeVar("_Result")

_POLL_SECONDS = 0.02


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

    def run(self, function: Callable[[], _Result], is_stopped: Callable[[], bool] = lambda: False) -> _Result:
        """Run something and wait for it. Raises what it raises; KeyboardInterrupt when `is_stopped` says so."""
        future = self.start(function)
        while not future.done():
            if is_stopped():
                raise KeyboardInterrupt
            time.sleep(_POLL_SECONDS)
        return future.result()

    def stream(self, begin: Callable[[], Reply], is_stopped: Callable[[], bool]) -> Iterator[str]:
        """The pieces of a reply as text, while the thread computes it; an empty one every 20 ms where none comes.

        Once `is_stopped` says so, the reply ends at its next token; one without any token yet is left at once, and
        ends by itself. Raises what the reply raises.
        """
        pieces: queue.SimpleQueue[str] = queue.SimpleQueue()
        begun: list[Reply] = []
        stopped = False

        def work() -> None:
            begun.append(begin())
            if stopped:
                return
            for chunk in begun[0]:
                pieces.put(chunk.text)

        future = self.start(work)
        has_text = False
        while not (future.done() and pieces.empty()):
            try:
                piece = pieces.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                piece = ""
            has_text = has_text or bool(piece)
            yield piece
            if not stopped and is_stopped():
                stopped = True
                if begun:
                    begun[0].stop()
                if not has_text:
                    return
        future.result()
