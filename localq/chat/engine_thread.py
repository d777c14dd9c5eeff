"""The one thread that loads models and computes with them, so that the keyboard is never without an answer.

MLX's streams belong to the thread that made them: a model is loaded, used and closed here.
"""

from __future__ import annotations

import queue
import threading
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

    def run(self, function: Callable[[], _Result]) -> _Result:
        """Run something and wait for it. Raises what it raises."""
        return self.start(function).result()

    def stream(self, begin: Callable[[], Reply], is_stopped: Callable[[], bool]) -> Iterator[str]:
        """The pieces of a reply as text, while the thread computes it; an empty one every 20 ms where none comes.

        Once `is_stopped` says so, the reply ends at its next token; one without any token yet is given up at once, and
        nothing of it is kept. Raises what the reply raises.
        """
        pieces: queue.SimpleQueue[str] = queue.SimpleQueue()
        begun: list[Reply] = []
        has_token, given_up = threading.Event(), threading.Event()

        def work() -> None:
            begun.append(begin())
            if given_up.is_set():
                return
            for chunk in begun[0]:
                has_token.set()
                pieces.put(chunk.text)

        future = self.start(work)
        stopped = False
        while not (future.done() and pieces.empty()):
            try:
                yield pieces.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                yield ""
            if stopped or not is_stopped():
                continue
            stopped = True
            if not has_token.is_set():
                given_up.set()
                if begun:
                    begun[0].give_up()
                return
            begun[0].stop()
        future.result()
