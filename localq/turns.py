"""One reply at a time: callers of a model take turns.

A caller waits for the turn of another thread. A reply that the caller's own thread left unfinished is ended, because
waiting for it would never end. Knows no engine: a reply is any generator.
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

StopCheck = Callable[[], None]
"""Raises when the reply is no longer needed; called from time to time before the first piece."""

ReplyStart = Callable[[StopCheck, Callable[[], bool]], Generator["Chunk", None, None]]
"""Begins a reply; the second argument returns whether to end it at the next token, as interrupted."""


class Turns:
    """Gives the turn to one caller after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reply: weakref.ref[ReplyStream] | None = None

    def begin(self, reply: ReplyStream | None = None) -> None:
        """Wait for the turn; ends a reply that this thread left unfinished."""
        unfinished = self._reply  # another thread may end it at the same time
        running = unfinished() if unfinished is not None else None
        if running is not None and running.reader is threading.current_thread():
            running.cut_off()
        del running  # while this thread waits, it must not keep alive a reply that another thread drops
        self._lock.acquire()
        self._reply = weakref.ref(reply) if reply is not None else None

    def end(self) -> None:
        """Give the turn to the next caller."""
        self._reply = None
        self._lock.release()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A turn for a `with` block."""
        self.begin()
        try:
            yield
        finally:
            self.end()


class _NoLongerWanted(Exception):
    """Raised in a reply that was closed while its prompt was computed."""


def _stop_check(*ends: threading.Event) -> StopCheck:
    """Not a method of the reply: then its generator would refer to it, and it would never be freed when dropped."""

    def check() -> None:
        if any(end.is_set() for end in ends):
            raise _NoLongerWanted

    return check


class ReplyStream(Iterator["Chunk"]):
    """The pieces of a reply. Its turn lasts from the first piece to the last one, or to `close`."""

    def __init__(self, turns: Turns, start: ReplyStart) -> None:
        self._turns = turns
        self._start = start
        self._chunks: Generator[Chunk, None, None] | None = None
        self._reading = threading.Lock()
        """Held by the thread that reads or ends the reply."""
        self._has_turn = False
        self._over = threading.Event()
        self._stopped = threading.Event()
        self._was_cut_off = False
        self.reader: threading.Thread | None = None
        """The thread that read last; not its number, which a later thread may get."""

    def __next__(self) -> Chunk:
        try:
            with self._reading:
                chunk = self._read()
        finally:
            if self._over.is_set():  # at its end, or closed by another thread meanwhile
                self._end()
        if self._over.is_set():
            raise StopIteration
        return chunk

    @property
    def state(self) -> str:
        """For people: not begun, being read, ended, or cut off."""
        if self._was_cut_off:
            return "cut off: the model was used for something else"
        if self._over.is_set():
            return "ended"
        return "being read" if self._chunks is not None else "not begun: read it with a for loop"

    def __repr__(self) -> str:
        return f"<ReplyStream, {self.state}>"

    def _read(self) -> Chunk:
        if self._was_cut_off:
            raise EngineError(
                "this reply was cut off: the same thread used the model for something else",
                "read a reply to its end, or close it, before the next one",
            )
        if self._over.is_set():
            raise StopIteration
        check = _stop_check(self._over, self._stopped)
        try:
            self.reader = threading.current_thread()
            if self._chunks is None:
                self._turns.begin(self)
                self._has_turn = True
                check()
                self._chunks = self._start(check, self._stopped.is_set)
            return next(self._chunks)
        except BaseException as error:
            self._over.set()
            if isinstance(error, _NoLongerWanted):
                raise StopIteration from None
            raise

    def stop(self) -> None:
        """End the reply at its next token, with a last chunk as usual. During the prompt, the same as `close`."""
        self._stopped.set()

    def close(self) -> None:
        """Stop the engine and end the turn. Calling it twice is harmless.

        If another thread is computing the next piece, that thread stops after the current token or the current chunk
        of the prompt.
        """
        self._over.set()
        self._end()

    def cut_off(self) -> None:
        """As `close`, when the model is used for something else; reading on raises EngineError."""
        self._was_cut_off = True
        self.close()

    def _end(self) -> None:
        if not self._reading.acquire(blocking=False):
            return  # the thread that reads will end it
        try:
            if self._has_turn:
                self._has_turn = False
                try:
                    if self._chunks is not None:
                        self._chunks.close()
                finally:
                    self._turns.end()
        finally:
            self._reading.release()

    def __enter__(self) -> ReplyStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
