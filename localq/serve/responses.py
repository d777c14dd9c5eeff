"""OpenAI's `/v1/responses`, as far as one reply in text goes: nothing is stored."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from localq.serve.core import Replies, Reply, Wanted
from localq.serve.intake import Strict
from localq.serve.protocols import (
    WHOLE,
    Absent,
    AbsentList,
    Content,
    Count,
    JsonFormat,
    Off,
    OpenAiRequest,
    Protocol,
    SchemaFormat,
    Text,
    TextFormat,
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


class JsonSchemaFormat(SchemaFormat):
    """JSON by a schema."""

    type: Literal["json_schema"]


_Format = Annotated[TextFormat | JsonFormat | JsonSchemaFormat, Field(discriminator="type")]


class TextConfig(Strict):
    """The form of the reply."""

    format: _Format | None = None
    verbosity: Literal["medium"] | None = None


class ResponsesRequest(OpenAiRequest):
    """A request for a reply."""

    input: str | Annotated[list[InputMessage], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: TextConfig | None = None
    truncation: Literal["disabled"] | None = None
    background: Off | None = None
    tools: AbsentList = None
    tool_choice: Literal["none", "auto"] | None = None
    max_tool_calls: Absent = None
    include: AbsentList = None
    reasoning: Absent = None
    top_logprobs: Annotated[int, Field(ge=0, le=0), WHOLE] | None = None
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
    form = asked.text.format if asked.text else None
    options = asked.options(schema=form.schema_ if form else None)
    return Wanted(asked.model, (tuple(messages),), max_tokens=asked.max_output_tokens, options=options)


def _format(asked: ResponsesRequest) -> dict[str, Any]:
    form = asked.text.format if asked.text else None
    return form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}


def _response(asked: ResponsesRequest, replies: Replies, head: dict[str, Any], item: Any = None) -> dict[str, Any]:
    """The answer: before there is anything, or with the item of the reply at its end."""
    status = item["status"] if item else "in_progress"
    return {
        **head,
        "status": status,
        "completed_at": int(time.time()) if status == "completed" else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": [item] if item else [],
        "usage": _usage(replies) if item else None,
        "background": False,
        "error": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "model": replies.opened.offer.id,
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": False,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "text": {"format": _format(asked), "verbosity": "medium"},
        "tool_choice": asked.tool_choice or "auto",
        "tools": [],
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "truncation": "disabled",
        "user": asked.user,
    }


def _head() -> dict[str, Any]:
    return {"id": new_id("resp_"), "object": "response", "created_at": int(time.time())}


def _usage(replies: Replies) -> dict[str, Any]:
    prompt, cached, generated = replies.usage(1)
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + generated,
    }


def _item(item_id: str, reply: Reply | None = None) -> dict[str, Any]:
    """The message among the outputs: empty, or with the reply at its end."""
    status = "in_progress" if reply is None else "incomplete" if reply.finish_reason == "length" else "completed"
    content = [] if reply is None else [_part(reply.text)]
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _answer(asked: ResponsesRequest, replies: Replies, whole: Sequence[Reply]) -> dict[str, Any]:
    return _response(asked, replies, _head(), _item(new_id("msg_"), whole[0]))


async def _events(asked: ResponsesRequest, replies: Replies) -> AsyncIterator[bytes]:
    head, item_id, numbers = _head(), new_id("msg_"), itertools.count()
    place = {"item_id": item_id, "output_index": 0, "content_index": 0}

    def named(kind: str, **fields: Any) -> bytes:
        kind = f"response.{kind}"
        return event({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    yield named("created", response=_response(asked, replies, head))
    yield named("in_progress", response=_response(asked, replies, head))
    yield named("output_item.added", output_index=0, item=_item(item_id))
    yield named("content_part.added", **place, part=_part(""))
    async for piece in replies.pieces():
        if piece.text:
            yield named("output_text.delta", **place, delta=piece.text, logprobs=[])
    item = _item(item_id, replies.replies[0])
    yield named("output_text.done", **place, text=replies.replies[0].text, logprobs=[])
    yield named("content_part.done", **place, part=item["content"][0])
    yield named("output_item.done", output_index=0, item=item)
    yield named(item["status"], response=_response(asked, replies, head, item))


def _failed(refusal: Refusal) -> bytes:
    fields = {"message": refusal.message, "code": refusal.code, "param": refusal.param, "sequence_number": 0}
    return event({"type": "error", **fields}, "error")


RESPONSES = Protocol(ResponsesRequest, _wanted, _answer, _events, _failed)
