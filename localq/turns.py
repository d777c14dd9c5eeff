"""One reply at a time: callers of a model take turns.

A turn of another thread is waited for. A reply that the same thread left unfinished is ended, since waiting
for it would never end. Knows no engine: it runs whatever iterator it is given.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from localq.errors import EngineError

if TYPE_CHECKING:
    from localq.generation import Chunk


class Turns:
    """Whose turn it is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._reply: weakref.ref[ReplyStream] | None = None

    def begin(self, reply: ReplyStream | None = None) -> None:
        """Wait for the turn; ends a reply that this thread left unfinished."""
        unfinished = self._reply() if self._reply is not None else None
        if unfinished is not None and self._thread == threading.get_ident():
            unfinished.cut_off()
        self._lock.acquire()
        self._thread = threading.get_ident()
        self._reply = weakref.ref(reply) if reply is not None else None

    def end(self) -> None:
        """Let the next one have it."""
        self._thread = self._reply = None
        self._lock.release()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A turn for the time of a `with` block."""
        self.begin()
        try:
            yield
        finally:
            self.end()


class ReplyStream(Iterator["Chunk"]):
    """The pieces of a reply. Its turn begins with the first piece and ends with the last one, or with `close`."""

    def __init__(self, turns: Turns, start: Callable[[], Generator[Chunk, None, None]]) -> None:
        self._turns = turns
        self._start = start
        self._chunks: Generator[Chunk, None, None] | None = None
        self._is_over = False
        self._was_cut_off = False

    def __next__(self) -> Chunk:
        if self._was_cut_off:
            raise EngineError(
                "this reply was cut off: the same thread asked the model for something else",
                "read a reply to its end, or close it, before the next one",
            )
        if self._is_over:
            raise StopIteration
        if self._chunks is None:
            self._turns.begin(self)
            self._chunks = self._start()
        try:
            return next(self._chunks)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop the engine and give up the turn. Calling it twice is harmless."""
        is_running = self._chunks is not None and not self._is_over
        self._is_over = True
        if is_running and self._chunks is not None:
            try:
                self._chunks.close()
            finally:
                self._turns.end()

    def cut_off(self) -> None:
        """As `close`, when the model is wanted for something else; reading on raises EngineError."""
        self._was_cut_off = True
        self.close()

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
