"""Replies computed together: one thread runs a model for many requests.

Requests join and leave between two passes. Knows no protocol and no chat template: prompts are token ids.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from localq.engine_thread import borrow_engine_thread, return_engine_thread
from localq.errors import EngineError, LocalqError, UnsupportedOptionError
from localq.generation import Chunk, stream

if TYPE_CHECKING:
    from localq.engines.base import Constraint
    from localq.model import Model
    from localq.options import GenerationOptions

OnEvent = Callable[[Chunk | LocalqError], None]
"""Called in the engine thread, which waits for it: it hands the event on at once, and raises nothing."""


@dataclass(frozen=True, slots=True)
class ReplyRequest:
    """One reply that is wanted."""

    prompt: tuple[int, ...]
    options: GenerationOptions
    begun: tuple[int, ...] = ()
    """Ids of a reply to continue, after the prompt."""
    constraint: Constraint | None = None
    """What the reply may be; a new one for each request. None: anything."""
    raw: bool = False
    """Whether the prompt is a plain text to continue, without a chat template; see `Model.text_rules`."""


class Ticket:
    """A request that was submitted."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """The reply is no longer wanted: no more events come, from the next token or chunk of the prompt on."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()


class Batcher:
    """Computes replies of one model, up to `LoadOptions.sequences` at the same time, the others wait in order."""

    def __init__(self, model: Model) -> None:
        """Close it before the model."""
        self._model = model
        self._queue: deque[tuple[ReplyRequest, OnEvent, Ticket]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._running = 0
        self._thread = borrow_engine_thread()
        self._done = self._thread.start(self._serve)

    @property
    def running(self) -> int:
        """Replies that are being computed."""
        return self._running

    @property
    def waiting(self) -> int:
        """Requests whose reply has not begun."""
        return len(self._queue)

    def submit(self, request: ReplyRequest, on_event: OnEvent) -> Ticket:
        """Ask for a reply; any thread may call it.

        `on_event` gets the chunks, the last of which has the finish reason and the statistics, or one error instead of
        further chunks. Raises EngineError after `close`.
        """
        ticket = Ticket()
        with self._changed:
            if self._closed:
                raise EngineError("this model has been closed")
            self._queue.append((request, on_event, ticket))
            self._changed.notify()
        return ticket

    def close(self) -> None:
        """End all replies: those that are not finished get an EngineError. Calling it twice is harmless."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify()
        self._done.result()
        return_engine_thread(self._thread)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                request, on_event, ticket = self._queue.popleft()
                self._running = 1
            try:
                self._answer(request, on_event, ticket)
            except LocalqError as error:
                on_event(error)
            self._running = 0

    def _answer(self, request: ReplyRequest, on_event: OnEvent, ticket: Ticket) -> None:
        rules = replace(self._model.text_rules(raw=request.raw), begun=request.begun)
        if request.constraint is not None:
            raise UnsupportedOptionError("constraints are not there yet")
        for chunk in stream(self._model.engine, rules, [*request.prompt, *request.begun], request.options):
            if self._closed:
                raise EngineError("this model has been closed")
            if ticket.is_cancelled:
                return
            on_event(chunk)
