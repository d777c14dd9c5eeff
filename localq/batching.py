"""Replies computed together: one thread runs a model for many requests.

Requests join and leave between two passes. Each pass gives every running reply a token; between two of them comes at
most one chunk of a prompt. Knows no protocol and no chat template: prompts are token ids.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count
from typing import TYPE_CHECKING, Any

from localq.engine_thread import borrow_engine_thread, return_engine_thread
from localq.engines.base import Drawn, Feed, Guide, shared_prefix_tokens
from localq.errors import EngineError, LocalqError, UnsupportedOptionError
from localq.fairness import Rotation
from localq.generation import Chunk, Meter, ReplyState

if TYPE_CHECKING:
    from localq.engines.base import Constraint, Engine
    from localq.generation import TextRules
    from localq.model import Model
    from localq.options import GenerationOptions

OnEvent = Callable[[Chunk | LocalqError], None]
"""Called in the engine thread, which waits for it: it hands the event on at once. It must not close the Batcher."""

_COPY_FROM_TOKENS = 16
"""A common beginning of fewer tokens is computed again: copying a sequence takes about as long."""


@dataclass(frozen=True, slots=True)
class ReplyRequest:
    """One reply that is wanted."""

    prompt: tuple[int, ...]
    options: GenerationOptions
    begun: tuple[int, ...] = ()
    """Ids of a reply to continue, after the prompt."""
    constraint: Constraint | None = None
    """What the reply may be; a new one for each request. None: what the options say."""
    raw: bool = False
    """Whether the prompt is a plain text to continue, without a chat template; see `Model.text_rules`."""
    client: str = ""
    """Who asks: clients get their places by turns."""


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
    """Computes replies of one model, up to `LoadOptions.sequences` at the same time; the others wait for their turn.

    What a reply leaves in its sequence is kept until another one needs the place: a prompt that begins in the same way
    uses it. While there are requests, `Model.generate` in other threads waits.
    """

    def __init__(self, model: Model) -> None:
        """Close it before the model."""
        self._model = model
        self._engine: Engine = model.engine
        self._arrived: deque[_Reply] = deque()
        self._active: list[_Reply] = []
        self._rotation = Rotation()
        self._changed = threading.Condition()
        self._closed = False
        self._clock = count(1)
        self._sequences = self._engine.sequences
        self._last_use = [0] * self._sequences
        self._held_tokens = [0] * self._sequences
        self._thread = borrow_engine_thread()
        self._done = self._thread.start(self._serve)
        # A process that ends frees its models, and must not do so while they compute.
        atexit.register(self.close)

    @property
    def running(self) -> int:
        """Replies that are being computed."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Requests whose reply has not begun."""
        return len(self._arrived)

    def submit(self, request: ReplyRequest, on_event: OnEvent) -> Ticket:
        """Ask for a reply; any thread may call it.

        `on_event` gets the chunks, the last of which has the finish reason and the statistics, or one error instead of
        further chunks. Raises EngineError after `close`, OptionError for a constraint that can't be kept.
        """
        if request.constraint is None:
            request = replace(request, constraint=self._model.constraint(request.options, request.begun))
        rules = replace(self._model.text_rules(raw=request.raw), begun=request.begun)
        reply = _Reply(request, rules, on_event)
        with self._changed:
            if self._closed:
                raise _closed_error()
            self._arrived.append(reply)
            self._changed.notify()
        return reply.ticket

    def close(self) -> None:
        """End all replies: those that are not finished get an EngineError. Calling it twice is harmless."""
        with self._changed:
            was_closed, self._closed = self._closed, True
            self._changed.notify()
        self._done.result()
        atexit.unregister(self.close)
        if not was_closed:
            return_engine_thread(self._thread)

    def _serve(self) -> None:
        failure: LocalqError = _closed_error()
        try:
            while self._wait():
                with self._model.turn():
                    while not self._closed and (self._active or self._arrived):
                        self._round()
        except LocalqError as error:  # the model was closed
            failure = error
        except Exception as error:
            failure = EngineError(f"the engine failed: {type(error).__name__}: {error}")
        with self._changed:
            self._closed = True
        for reply in [*self._active, *self._arrived]:
            reply.fail(failure)
        self._active, self._arrived = [], deque()

    def _wait(self) -> bool:
        """Wait for requests; False when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrived or self._closed)
            return not self._closed

    def _round(self) -> None:
        """One token for every reply that has its prompt computed, and a step for prompts."""
        for reply in self._active:
            if reply.ticket.is_cancelled:
                reply.end()
        self._admit()
        self._step([reply for reply in self._active if not reply.in_prompt])
        self._step(self._next_prompts())

    def _next_prompts(self) -> list[_Reply]:
        """Those whose next chunks are computed together, the least recently computed first.

        The running replies wait for the step. It is of one chunk, unless more prompts wait than replies run.
        """
        waiting = [reply for reply in self._active if reply.in_prompt]
        waiting.sort(key=lambda reply: self._last_use[reply.sequence])
        running = len(self._active) - len(waiting)
        chunk = self._engine.chunk_tokens
        room = min(self._engine.step_tokens, chunk * max(1, len(waiting) // max(1, running)))
        sizes = accumulate(min(chunk, reply.pending_tokens) for reply in waiting)
        return [reply for reply, size in zip(waiting, sizes, strict=True) if size <= room]

    def _step(self, replies: list[_Reply]) -> None:
        """One step of the engine for these replies. Its failure ends all running replies; later ones may succeed."""
        feeds = {reply: feed for reply in replies if (feed := reply.feed(self._engine.chunk_tokens)) is not None}
        try:
            drawn = self._engine.step(list(feeds.values())) if feeds else []
        except LocalqError as error:
            for reply in self._active:
                reply.fail(error)
            drawn = []
        for reply, result in zip(feeds, drawn, strict=False):
            self._last_use[reply.sequence] = next(self._clock)
            self._held_tokens[reply.sequence] += len(feeds[reply].tokens)
            if result is not None:
                reply.take(result)
        self._active = [reply for reply in self._active if not reply.is_over]

    def _admit(self) -> None:
        """Begin the replies that there is room for; those that can soon use the prompt of another one wait for it."""
        self._active = [reply for reply in self._active if not reply.is_over]
        with self._changed:
            self._arrived = deque(reply for reply in self._arrived if not reply.ticket.is_cancelled)
            waiting = list(self._arrived)
        if len(self._active) == self._sequences:
            return
        for reply in self._rotation.order(waiting, self._active):
            if len(self._active) == self._sequences:
                return
            if not self._computes_beginning_of(reply.whole):
                self._begin(reply)
                with self._changed:
                    self._arrived.remove(reply)

    def _computes_beginning_of(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt is being computed that begins in the same way, and has not come to where they differ."""
        least = _COPY_FROM_TOKENS + max(self._engine.reusable(sequence, prompt) for sequence in range(self._sequences))
        running = [reply for reply in self._active if reply.in_prompt]
        shared = {reply: shared_prefix_tokens(reply.whole, prompt) for reply in running}
        return any(reply.computed_tokens < tokens >= least for reply, tokens in shared.items())

    def _begin(self, reply: _Reply) -> None:
        try:
            sequence = self._choose(reply.whole)
            cached = self._engine.begin(sequence, reply.whole)
            self._held_tokens[sequence] = cached
            reply.begin(self._engine, sequence, cached)
            self._rotation.began(reply)
        except LocalqError as error:
            reply.fail(error)
        else:
            self._last_use[sequence] = next(self._clock)
            self._active.append(reply)

    def _choose(self, prompt: Sequence[int]) -> int:
        """A sequence that is not in use, with as much of the prompt in it as another one has.

        One that holds much more than that keeps it: its beginning is copied to the least recently used one.
        """
        engine, used = self._engine, {reply.sequence for reply in self._active}
        idle = [sequence for sequence in range(self._sequences) if sequence not in used]
        oldest = min(idle, key=lambda sequence: self._last_use[sequence])
        shared = {sequence: engine.reusable(sequence, prompt) for sequence in range(self._sequences)}
        best = max(shared, key=lambda sequence: (shared[sequence], sequence in idle))
        if best in idle and self._held_tokens[best] <= 2 * shared[best]:
            return best
        if shared[best] >= shared[oldest] + _COPY_FROM_TOKENS:
            try:
                engine.restore(engine.state(best), oldest)
            except UnsupportedOptionError:  # a network whose cache can't be copied
                return best if best in idle else oldest
        return oldest


class _Reply:
    """One request on its way."""

    def __init__(self, request: ReplyRequest, rules: TextRules, on_event: OnEvent) -> None:
        self.whole = [*request.prompt, *request.begun]
        self.client, self.arrived = request.client, time.monotonic()
        self.ticket = Ticket()
        self.sequence = -1
        self.in_prompt = True
        self.is_over = False
        self._request = request
        self._on_event = on_event
        self._rules = rules

    def begin(self, engine: Engine, sequence: int, cached: int) -> None:
        """The clock starts. Raises OptionError for a bias that does not fit the vocabulary."""
        options = self._request.options
        self._sampler: Any = engine.sampler(options, self.whole)
        self._guide = Guide(self._request.constraint, options, engine.vocabulary_size)
        self._text = ReplyState(self._rules, options)
        self._meter = Meter()
        self._asked = time.perf_counter()
        self._left = min(options.max_tokens, engine.context_length - len(self.whole))
        self._cached = cached
        self._pending = self.whole[cached:]
        self.sequence = sequence

    @property
    def pending_tokens(self) -> int:
        """Still to be computed of the prompt, while it is."""
        return len(self._pending)

    @property
    def computed_tokens(self) -> int:
        """Of the prompt, while it is computed."""
        return len(self.whole) - len(self._pending)

    def feed(self, chunk_tokens: int) -> Feed | None:
        """What the engine computes next; None where the constraint failed, and with it the reply."""
        tokens, self._pending = self._pending[:chunk_tokens], self._pending[chunk_tokens:]
        if self._pending:
            return Feed(self.sequence, tokens)
        try:
            return Feed(self.sequence, tokens, self._sampler, self._guide.mask())
        except LocalqError as error:
            self.fail(error)
            return None

    def take(self, drawn: Drawn) -> None:
        """A token was drawn."""
        if self.in_prompt:
            self.in_prompt = False
            self._meter.prompt_is_computed()
        asked, self._asked = self._asked, time.perf_counter()
        try:
            tokens = self._guide.follow(drawn.token_id)[: self._left]
        except LocalqError as error:
            self.fail(error)
            return
        for forced in tokens[1:]:
            self._sampler.accept(forced)
        for token in tokens:
            self._meter.count(asked, self._asked)
            asked = self._asked
            self._send(self._text.push(token, drawn.logits))
            self._left -= 1
            if self._text.is_over or self._left == 0:
                self._send(self._text.finish(self._meter.statistics(len(self.whole), self._cached)))
                self.end()
                return
        self._pending = tokens

    def fail(self, error: LocalqError) -> None:
        """The reply ends with an error, unless it has ended."""
        if not self.is_over:
            self._send(error)
            self.end()

    def end(self) -> None:
        """Nothing more is computed."""
        self.is_over = True
        if self.sequence >= 0:
            self._sampler.close()

    def _send(self, event: Chunk | LocalqError) -> None:
        if self.ticket.is_cancelled:
            return
        try:
            self._on_event(event)
        except Exception:  # nobody listens any more; the other replies go on
            self.ticket.cancel()


def _closed_error() -> EngineError:
    return EngineError("this model has been closed")
