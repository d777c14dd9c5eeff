"""OpenAI's `/v1/responses`, as far as one reply in text goes: nothing is stored."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from localq.serve.chat_completions import TextFormat
from localq.serve.core import Replies, Reply, Wanted
from localq.serve.intake import Strict
from localq.serve.protocols import (
    Absent,
    AbsentList,
    Content,
    Count,
    OpenAiRequest,
    Protocol,
    Text,
    event,
    joined,
    new_id,
)
from localq.serve.refusals import Refusal


class InputMessage(Strict):
    """A message of the conversation, also one of an earlier answer as it was given."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    type: Literal["message"] | None = None
    id: Text | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class TextConfig(Strict):
    """The form of the reply."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesRequest(OpenAiRequest):
    """A request for a reply."""

    input: str | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: TextConfig | None = None
    truncation: Literal["disabled"] | None = None
    background: Literal[False] | None = None
    tools: AbsentList = None
    tool_choice: Literal["none", "auto"] | None = None
    max_tool_calls: Absent = None
    include: AbsentList = None
    reasoning: Absent = None
    top_logprobs: Literal[0] | None = None
    previous_response_id: Absent = None
    conversation: Absent = None
    prompt: Absent = None


def _wanted(asked: ResponsesRequest) -> Wanted:
    messages = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    if isinstance(asked.input, str):
        messages.append({"role": "user", "content": asked.input})
    else:
        for one in asked.input:
            role = "system" if one.role == "developer" else one.role
            messages.append({"role": role, "content": joined(one.content)})
    return Wanted(asked.model, (tuple(messages),), max_tokens=asked.max_output_tokens, options=asked.options())


class _Response:
    """The answer, at every stage: it is sent whole at the beginning and at the end."""

    def __init__(self, asked: ResponsesRequest, replies: Replies) -> None:
        self._replies = replies
        self.item_id = new_id("msg_")
        self._fields: dict[str, Any] = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "background": False,
            "error": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "metadata": asked.metadata or {},
            "model": replies.opened.offer.id,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "text": {"format": {"type": "text"}, "verbosity": "medium"},
            "tool_choice": asked.tool_choice or "auto",
            "tools": [],
            "top_logprobs": 0,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "truncation": "disabled",
            "user": asked.user,
        }

    def begun(self) -> dict[str, Any]:
        """Before there is anything."""
        stage: dict[str, Any] = {"status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        return {**self._fields, **stage, "completed_at": None}

    def ended(self, reply: Reply) -> dict[str, Any]:
        """With the reply."""
        prompt, cached, generated = self._replies.usage(1)
        cut = reply.finish_reason == "length"
        return {
            **self._fields,
            "status": _status(reply),
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": [self.item([self.part(reply.text)], _status(reply))],
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
                "output_tokens": generated,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + generated,
            },
        }

    def item(self, content: list[Any], status: str) -> dict[str, Any]:
        """The message among the outputs."""
        return {"id": self.item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def part(self, text: str) -> dict[str, Any]:
        """The text of the message."""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _status(reply: Reply) -> str:
    return "incomplete" if reply.finish_reason == "length" else "completed"


def _answer(asked: ResponsesRequest, replies: Replies, whole: Sequence[Reply]) -> dict[str, Any]:
    return _Response(asked, replies).ended(whole[0])


async def _events(asked: ResponsesRequest, replies: Replies) -> AsyncIterator[bytes]:
    response, number = _Response(asked, replies), -1
    place = {"item_id": response.item_id, "output_index": 0, "content_index": 0}

    def named(kind: str, **fields: Any) -> bytes:
        nonlocal number
        number += 1
        return event({"type": f"response.{kind}", "sequence_number": number, **fields}, f"response.{kind}")

    yield named("created", response=response.begun())
    yield named("in_progress", response=response.begun())
    yield named("output_item.added", output_index=0, item=response.item([], "in_progress"))
    yield named("content_part.added", **place, part=response.part(""))
    async for piece in replies.pieces():
        if piece.text:
            yield named("output_text.delta", **place, delta=piece.text, logprobs=[])
    reply = replies.replies[0]
    yield named("output_text.done", **place, text=reply.text, logprobs=[])
    yield named("content_part.done", **place, part=response.part(reply.text))
    item = response.item([response.part(reply.text)], _status(reply))
    yield named("output_item.done", output_index=0, item=item)
    yield named(_status(reply), response=response.ended(reply))


def _failed(refusal: Refusal) -> bytes:
    fields = {"message": refusal.message, "code": refusal.code, "param": refusal.param, "sequence_number": 0}
    return event({"type": "error", **fields}, "error")


RESPONSES = Protocol(ResponsesRequest, _wanted, _answer, _events, _failed)
