"""Requests of every protocol become replies here: the prompt's ids, a place in the queue, pieces as they come.

The event loop never computes: prompts are made in a worker thread, replies in the thread of the model's batcher.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from localq.batching import ReplyRequest, Ticket
from localq.engines.base import Constraint, check_bias, check_prompt
from localq.errors import ChatTemplateError, EngineError, LocalqError, OptionError
from localq.generation import Chunk, GenerationStatistics, TokenLogprobs
from localq.model import Model
from localq.options import GenerationOptions
from localq.serve.models import Models, Opened
from localq.serve.refusals import Refusal, as_refusal, try_later
from localq.serve.tally import CLIENT_GONE, Record, Tally
from localq.structured.tools import CallPart, CallReader

MOST_WAITING = 256
"""Replies that may wait for their turn, of all requests together. A client gets as many places as are left then."""

_LARGEST_SEED = 2**32 - 2

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]
"""Plain text or ids to continue, or a chat's messages."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What may be called."""

    offered: tuple[Mapping[str, Any], ...]
    """As OpenAI's chats describe them."""
    required: bool = False
    """Whether the reply must be a call."""
    several: bool = True
    """Whether it may be several calls."""
    only: str | None = None
    """The name of the only tool that may be called; the model sees the others too."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for, whatever its protocol."""

    model: str
    prompts: tuple[Prompt, ...]
    raw: bool = False
    """Whether the prompts are plain text or ids."""
    count: int = 1
    """Replies to each prompt."""
    max_tokens: int | None = None
    """None: until the context is full."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of GenerationOptions that were given."""
    begun: str = ""
    """How the reply begins; only what follows is given."""
    tools: Tools | None = None
    """None: none may be called."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Something new of one of the replies."""

    index: int
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    """Of the tokens of the text, as far as the request asks for them."""
    finish_reason: str | None = None
    calls: tuple[CallPart, ...] = ()


@dataclass
class Call:
    """A call of a tool."""

    name: str
    arguments: str = ""
    """JSON, as far as it has come."""
    id: str = field(default_factory=lambda: f"call_{secrets.token_hex(12)}")


@dataclass
class Reply:
    """What came of a reply so far."""

    prompt: tuple[int, ...]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    statistics: GenerationStatistics | None = None
    reader: CallReader | None = None
    """Where tools may be called."""
    calls: list[Call] = field(default_factory=list)
    _held: list[TokenLogprobs] = field(default_factory=list)
    """Of tokens whose text has not come yet: it may become a stop string."""

    def add(self, index: int, chunk: Chunk) -> Piece:
        """Count a chunk in."""
        text, parts = (chunk.text, []) if self.reader is None else self._read(self.reader, chunk)
        self.text += text
        self.token_ids += chunk.token_ids
        self._held += [chunk.logprobs] if chunk.logprobs else []
        self.finish_reason, self.statistics = chunk.finish_reason, chunk.statistics
        known: tuple[TokenLogprobs, ...] = ()
        if chunk.text or chunk.finish_reason == "length":
            known, self._held = tuple(self._held), []
            self.logprobs += known
        if self.calls and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return Piece(index, text, known, self.finish_reason, tuple(parts))

    def _read(self, reader: CallReader, chunk: Chunk) -> tuple[str, list[CallPart]]:
        text, parts = reader.push(chunk.text, is_end=chunk.finish_reason is not None)
        for part in parts:
            if part.name is not None:
                self.calls.append(Call(part.name))
            self.calls[part.place].arguments += part.arguments
        return text, parts


class Replies:
    """The replies to one request. Close it whatever happens: that frees their sequences."""

    def __init__(self, opened: Opened, tally: Tally, record: Record) -> None:
        self.opened, self.record = opened, record
        self.replies: list[Reply] = []
        self._tally = tally
        self._events: asyncio.Queue[tuple[int, Chunk | LocalqError]] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        self._closed = False

    @property
    def model(self) -> Model:
        """The model that replies."""
        return self.opened.model

    def submit(self, requests: Sequence[ReplyRequest], with_tools: bool) -> None:
        """Queue the replies. Raises Refusal."""
        loop = asyncio.get_running_loop()
        for index, request in enumerate(requests):
            reader = self.model.tool_format.reader() if with_tools else None
            self.replies.append(Reply(request.prompt, reader=reader))

            def on_event(event: Chunk | LocalqError, index: int = index) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

            self._tickets.append(self.opened.batcher.submit(request, on_event))

    async def pieces(self) -> AsyncIterator[Piece]:
        """What is new, as it comes, until all replies are at their end. Raises Refusal where the engine fails."""
        left = len(self.replies)
        while left:
            index, event = await self._events.get()
            await asyncio.sleep(0)  # where many have come: others get their turn, and a closed connection is noticed
            if isinstance(event, LocalqError):
                self.record.failure = event.message
                raise as_refusal(event)
            piece = self.replies[index].add(index, event)
            left -= piece.finish_reason is not None
            yield piece

    async def whole(self) -> list[Reply]:
        """All replies at their end. Raises Refusal."""
        async for _ in self.pieces():
            pass
        return self.replies

    def usage(self, prompts: int) -> tuple[int, int, int]:
        """Tokens of the prompts, of those from the cache, and of the replies; each prompt counts once."""
        firsts = self.replies[:: len(self.replies) // prompts]
        cached = sum(reply.statistics.cached_prompt_tokens for reply in firsts if reply.statistics)
        return sum(len(reply.prompt) for reply in firsts), cached, sum(len(reply.token_ids) for reply in self.replies)

    def close(self) -> None:
        """Stop what still runs and let the model go."""
        if not self._closed:
            self._closed = True
            if any(reply.finish_reason is None for reply in self.replies) and not self.record.failure:
                self.record.status = CLIENT_GONE
            for ticket in self._tickets:
                ticket.cancel()
            self.opened.release()
            self._tally.leave(self.record.client, len(self.replies))
            self._tally.count(self.record, self.opened.offer.id, self.replies)


class Core:
    """Begins replies."""

    def __init__(self, models: Models, tally: Tally, sequences: int, log_prompts: bool) -> None:
        self.models, self.tally = models, tally
        self._most_queued = sequences + MOST_WAITING
        self._log_prompts = log_prompts

    async def begin(self, wanted: Wanted, record: Record) -> Replies:
        """Open the model, make the prompts and queue the replies. Raises Refusal."""
        count = len(wanted.prompts) * wanted.count
        if count > self._most_queued:
            raise Refusal(400, f"{count} replies are more than {self._most_queued}, the most at a time", "n")
        own, free = self.tally.queued[record.client], self._most_queued - self.tally.queued.total()
        if own + count > free:  # so there is always room for another client
            own_part = f"this client has {own} replies in the queue, and the rest of it is for others"
            raise try_later(429, own_part if own else "the queue is full", "queue_full")
        self.tally.queued[record.client] += count  # before anything is awaited: many requests may come at once
        replies = None
        try:
            opened = await self.models.use(wanted.model)
            replies = Replies(opened, self.tally, record)
            record.model, record.form = opened.offer.model, opened.offer.form
            requests = await asyncio.to_thread(_requests, opened.model, wanted, record.client)
            if self._log_prompts:
                record.prompts = [_shown(opened.model, request.prompt) for request in requests[:: wanted.count]]
            replies.submit(requests, wanted.tools is not None)
        except BaseException as error:
            self.tally.leave(record.client, count if replies is None else count - len(replies.replies))
            if replies is not None:
                replies.close()
            if isinstance(error, LocalqError):
                refusal = as_refusal(error)
                record.failure = error.message if refusal.status >= 500 else ""  # the client's own may quote a prompt
                raise refusal from error
            raise
        return replies

    async def count(self, wanted: Wanted) -> int:
        """Tokens of the only prompt. Raises Refusal."""
        opened = await self.models.use(wanted.model)
        try:
            return len(await asyncio.to_thread(prompt_ids, opened.model, wanted.prompts[0], wanted.tools))
        except LocalqError as error:
            raise as_refusal(error) from error
        finally:
            opened.release()


def prompt_ids(model: Model, prompt: Prompt, tools: Tools | None = None) -> list[int]:
    """The ids of a prompt of any kind. Raises errors of the tree, Refusal where the model has no tools."""
    if isinstance(prompt, str):
        return model.prompt_token_ids(prompt, raw=True)
    if all(isinstance(part, int) for part in prompt):
        return [part for part in prompt if isinstance(part, int)]
    if model.chat_template is None:
        raise ChatTemplateError(f"{model.name} has no chat template; /v1/completions continues plain text")
    if tools is not None:
        try:
            _ = model.tool_format
        except ChatTemplateError as error:
            raise Refusal(400, error.message, "tools", "unsupported_value") from error
    messages = [part for part in prompt if isinstance(part, Mapping)]
    return model.prompt_token_ids(messages, tools=tools.offered if tools else ())


def _constraint(model: Model, wanted: Wanted, options: GenerationOptions, begun: Sequence[int]) -> Constraint | None:
    if wanted.tools is None:
        return model.constraint(options, begun)
    tools = [one for one in wanted.tools.offered if wanted.tools.only in (None, one["function"]["name"])]
    limits = {"required": wanted.tools.required, "several": wanted.tools.several}
    schema = cast(Mapping[str, Any] | None, options.schema)
    grammar = model.tool_format.grammar(tools, **limits, schema=schema)
    try:
        constraint = model.grammars.lark(grammar, "tools")
    except OptionError as error:  # of the lines, the first one has the reason
        raise Refusal(400, error.message.partition("\n")[0], "tools", "invalid_value") from error
    for token in begun:
        constraint.accept(token)
    return constraint


def _requests(model: Model, wanted: Wanted, client: str) -> list[ReplyRequest]:
    """One for each reply, in the order of the prompts. Raises errors of the tree before anything is computed."""
    begun = tuple(model.tokenizer.encode(wanted.begun, add_special_tokens=False)) if wanted.begun else ()
    options = GenerationOptions(**wanted.options)
    check_bias(options, model.engine.vocabulary_size)
    requests = []
    for prompt in wanted.prompts:
        ids = tuple(prompt_ids(model, prompt, wanted.tools))
        try:
            check_prompt((*ids, *begun), model.engine.vocabulary_size, model.context_length)
        except EngineError as error:  # it is empty, or has ids that the model does not have
            raise OptionError(error.message) from error
        room = model.context_length - len(ids) - len(begun)
        limited = replace(options, max_tokens=min(wanted.max_tokens or room, room))
        for number in range(wanted.count):
            seed = None if options.seed is None else (options.seed + number) % _LARGEST_SEED
            chosen = replace(limited, seed=seed)
            constraint = _constraint(model, wanted, chosen, begun)
            requests.append(ReplyRequest(ids, chosen, begun, constraint, wanted.raw, client))
    return requests


def _shown(model: Model, ids: Sequence[int]) -> str:
    names = {number: name for name, number in model.tokenizer.added_tokens.items()}
    return "".join(names.get(one) or model.tokenizer.token_bytes(one).decode("utf-8", "replace") for one in ids)
