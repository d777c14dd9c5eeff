"""Anthropic's `/v1/messages`, and the count of a request's tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from localq.serve.core import Replies, Reply, Wanted
from localq.serve.intake import Strict
from localq.serve.protocols import (
    Absent,
    AbsentList,
    Content,
    Count,
    Drawn,
    Named,
    NotNegative,
    Protocol,
    StopStrings,
    Text,
    event,
    joined,
    new_id,
)
from localq.serve.refusals import Refusal
from localq.text.tokenizer import decode_tokens


class Message(Strict):
    """A message of the conversation. One of the assistant at the end begins the reply."""

    role: Literal["user", "assistant"]
    content: Content


class Metadata(Strict):
    """About the user."""

    user_id: Text | None = None


class Disabled(Strict):
    """Off."""

    type: Literal["disabled"]


class ToolChoice(Strict):
    """What it can be without tools."""

    type: Literal["none", "auto"]


class CountRequest(Named):
    """A request for the number of its tokens."""

    messages: Annotated[list[Message], Field(min_length=1)]
    system: Content | None = None
    tools: AbsentList = None
    tool_choice: ToolChoice | None = None
    thinking: Disabled | None = None
    cache_control: dict[str, Any] | None = Field(default=None, description="Changes nothing: prompts are cached.")
    output_config: Absent = None

    def conversation(self) -> list[dict[str, Any]]:
        """Its messages, the system's first."""
        system = [] if self.system is None else [{"role": "system", "content": joined(self.system)}]
        return [*system, *({"role": one.role, "content": joined(one.content)} for one in self.messages)]


class MessagesRequest(CountRequest, Drawn):
    """A request for a reply to a conversation."""

    max_tokens: Count
    top_k: NotNegative | None = None
    stop_sequences: StopStrings | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: Absent = None


def count_wanted(asked: CountRequest) -> Wanted:
    """What a count of tokens is about."""
    return Wanted(asked.model, (tuple(asked.conversation()),))


def _wanted(asked: MessagesRequest) -> Wanted:
    messages, begun = asked.conversation(), ""
    if messages[-1]["role"] == "assistant" and len(messages) > 1:
        begun = messages.pop()["content"]
    options = asked.options(stop=asked.stop_sequences)
    return Wanted(asked.model, (tuple(messages),), max_tokens=asked.max_tokens, options=options, begun=begun)


def _stopped(asked: MessagesRequest, replies: Replies, reply: Reply) -> dict[str, Any]:
    """The fields `stop_reason` and `stop_sequence`."""
    if reply.finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if reply.token_ids and reply.token_ids[-1] in replies.model.end_tokens:
        return {"stop_reason": "end_turn", "stop_sequence": None}
    text = decode_tokens(replies.model.tokenizer, reply.token_ids)
    # The one that was complete first; a space may have been dropped before the reply.
    found = [(text.index(stop) + len(stop), -len(stop), stop) for stop in asked.stop_sequences or () if stop in text]
    return {"stop_reason": "stop_sequence", "stop_sequence": min(found)[2] if found else None}


def _message(replies: Replies, content: list[Any], stopped: dict[str, Any], used: dict[str, int]) -> dict[str, Any]:
    head = {"id": new_id("msg_"), "type": "message", "role": "assistant", "model": replies.opened.offer.id}
    return {**head, "content": content, **stopped, "usage": used}


def _usage(replies: Replies) -> dict[str, int]:
    prompt, cached, generated = replies.usage(1)
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": generated,
    }


def _answer(asked: MessagesRequest, replies: Replies, whole: Sequence[Reply]) -> dict[str, Any]:
    content = [{"type": "text", "text": whole[0].text, "citations": None}]
    return _message(replies, content, _stopped(asked, replies, whole[0]), _usage(replies))


async def _events(asked: MessagesRequest, replies: Replies) -> AsyncIterator[bytes]:
    def named(kind: str, **fields: Any) -> bytes:
        return event({"type": kind, **fields}, kind)

    begun = _message(replies, [], {"stop_reason": None, "stop_sequence": None}, _usage(replies))
    yield named("message_start", message=begun)
    yield named("content_block_start", index=0, content_block={"type": "text", "text": "", "citations": None})
    async for piece in replies.pieces():
        if piece.text:
            yield named("content_block_delta", index=0, delta={"type": "text_delta", "text": piece.text})
    yield named("content_block_stop", index=0)
    yield named("message_delta", delta=_stopped(asked, replies, replies.replies[0]), usage=_usage(replies))
    yield named("message_stop")


def _failed(refusal: Refusal) -> bytes:
    return event(refusal.body("/v1/messages"), "error")


MESSAGES = Protocol(MessagesRequest, _wanted, _answer, _events, _failed)
