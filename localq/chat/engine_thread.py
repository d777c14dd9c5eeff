"""A thread for the replies of a chat, so that the keyboard is never without an answer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from localq.conversation import Reply
from localq.engine_thread import EngineThread

_POLL_SECONDS = 0.02


class ReplyThread(EngineThread):
    """The one thread that loads a chat's models and computes with them."""

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
