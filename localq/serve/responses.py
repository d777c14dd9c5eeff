"""OpenAI's `/v1/responses`, as far as one reply in text goes: nothing is stored."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from localq.generation import TokenLogprobs
from localq.serve.core import Call, Replies, Reply, Wanted
from localq.serve.intake import Strict
from localq.serve.protocols import (
    WHOLE,
    Absent,
    Content,
    Count,
    FormatName,
    JsonFormat,
    Off,
    OpenAiRequest,
    Protocol,
    SchemaFormat,
    Text,
    TextFormat,
    event,
    joined,
    logprob_entries,
    new_id,
)
from localq.serve.refusals import Refusal
from localq.serve.tools import MOST_TOOLS, Function, Name, call_in_history, chosen_tools
from localq.text.tokenizer import Tokenizer


class InputMessage(Strict):
    """A message of the conversation, also one of an earlier answer as it was given."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    type: Literal["message"] | None = None
    id: Text | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    phase: Literal["commentary", "final_answer"] | None = None

    def plain(self) -> dict[str, Any]:
        """As chat templates read it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": joined(self.content)}


class FunctionCall(Strict):
    """A call in an earlier answer."""

    type: Literal["function_call"]
    call_id: Text
    name: Name
    arguments: str
    id: Text | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    namespace: Absent = None
    caller: Absent = None

    def plain(self) -> dict[str, Any]:
        """As chat templates read it."""
        call = call_in_history(self.call_id, self.name, self.arguments)
        return {"role": "assistant", "content": "", "tool_calls": [call]}


class FunctionCallOutput(Strict):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Text
    output: Content
    id: Text | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None

    def plain(self) -> dict[str, Any]:
        """As chat templates read it."""
        return {"role": "tool", "content": joined(self.output), "tool_call_id": self.call_id}


class FunctionTool(Function):
    """A function that the client has."""

    type: Literal["function"]


class NamedFunction(Strict):
    """The function to call."""

    type: Literal["function"]
    name: Name


def _kind(item: Any) -> str:
    kind = item.get("type") if isinstance(item, dict) else None
    return str(kind) if kind in ("function_call", "function_call_output") else "message"


_Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")],
    Discriminator(_kind),
]


class JsonSchemaFormat(SchemaFormat):
    """JSON by a schema."""

    type: Literal["json_schema"]
    name: FormatName


_Format = Annotated[TextFormat | JsonFormat | JsonSchemaFormat, Field(discriminator="type")]


class TextConfig(Strict):
    """The form of the reply."""

    format: _Format | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(Strict):
    """None: models here reason in their text, if at all."""

    effort: Literal["none"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponsesRequest(OpenAiRequest):
    """A request for a reply."""

    input: str | Annotated[list[_Item], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    text: TextConfig | None = None
    truncation: Literal["disabled"] | None = None
    background: Off | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    max_tool_calls: Absent = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    reasoning: Reasoning | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    previous_response_id: Absent = None
    conversation: Absent = None
    prompt: Absent = None

    @property
    def with_logprobs(self) -> bool:
        """Whether log-probabilities are asked for."""
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())


def responses_wanted(asked: ResponsesRequest) -> Wanted:
    """What a request asks for. Raises Refusal."""
    messages: list[dict[str, Any]] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        messages.append({"role": "user", "content": asked.input})
    else:
        for plain in (one.plain() for one in asked.input):
            before = messages[-1] if messages else {}
            if "tool_calls" in plain and before.get("role") == "assistant":  # one reply, in several items
                before["tool_calls"] = [*before.get("tool_calls", ()), *plain["tool_calls"]]
            else:
                messages.append(plain)
    form, choice = asked.text.format if asked.text else None, asked.tool_choice
    logprobs = asked.top_logprobs or 0 if asked.with_logprobs else None
    options = asked.options(logprobs, schema=form.schema_ if form else None)
    return Wanted(
        model=asked.model,
        prompts=(tuple(messages),),
        max_tokens=asked.max_output_tokens,
        options=options,
        tools=chosen_tools(
            asked.tools or (),
            f":{choice.name}" if isinstance(choice, NamedFunction) else choice,
            asked.parallel_tool_calls,
            options,
        ),
    )


def _format(asked: ResponsesRequest) -> dict[str, Any]:
    form = asked.text.format if asked.text else None
    return form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}


def _response(asked: ResponsesRequest, replies: Replies, head: dict[str, Any], items: Any = None) -> dict[str, Any]:
    """The answer: before there is anything, or with the items of the reply at its end."""
    status = items[-1]["status"] if items else "in_progress"
    choice = asked.tool_choice
    return {
        **head,
        "status": status,
        "completed_at": int(time.time()) if status == "completed" else None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "output": items or [],
        "usage": _usage(replies) if items else None,
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
        "tool_choice": choice.model_dump() if isinstance(choice, NamedFunction) else choice or "auto",
        "top_logprobs": asked.top_logprobs or 0,
        "tools": [{"strict": True, **tool.model_dump(exclude_none=True)} for tool in asked.tools or ()],
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


def _status(reply: Reply) -> str:
    return {None: "in_progress", "length": "incomplete"}.get(reply.finish_reason, "completed")


def _message_item(item_id: str, status: str = "in_progress", *content: dict[str, Any]) -> dict[str, Any]:
    """The message among the outputs."""
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": [*content]}


def _of_text(reply: Reply, tokenizer: Tokenizer) -> Iterator[TokenLogprobs]:
    """The log-probabilities of the text; calls come after it."""
    size, whole = 0, len(reply.text.encode())
    for one in reply.logprobs:
        if reply.calls and size >= whole:
            return
        size += len(tokenizer.token_bytes(one.token_id))
        yield one


def _call_item(call: Call, status: str, arguments: str) -> dict[str, Any]:
    """A call among the outputs."""
    own = {"id": f"fc_{call.id.removeprefix('call_')}", "type": "function_call", "status": status}
    return {**own, "call_id": call.id, "name": call.name, "arguments": arguments}


def _items(replies: Replies, message_id: str) -> list[dict[str, Any]]:
    """The outputs at the end of the reply."""
    reply, tokenizer = replies.replies[0], replies.model.tokenizer
    part = _part(reply.text, logprob_entries(tokenizer, _of_text(reply, tokenizer)))
    message = [_message_item(message_id, _status(reply), part)] if reply.text or not reply.calls else []
    last = len(reply.calls) - 1
    return message + [
        _call_item(call, _status(reply) if place == last else "completed", call.arguments)
        for place, call in enumerate(reply.calls)
    ]


def _part(text: str, logprobs: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*logprobs]}


def _answer(asked: ResponsesRequest, replies: Replies, whole: Sequence[Reply]) -> dict[str, Any]:
    return _response(asked, replies, _head(), _items(replies, new_id("msg_")))


Named = Callable[..., bytes]


def _message_begins(named: Named, item_id: str) -> Iterator[bytes]:
    yield named("output_item.added", output_index=0, item=_message_item(item_id))
    yield named("content_part.added", item_id=item_id, output_index=0, content_index=0, part=_part(""))


def _item_ends(named: Named, index: int, item: dict[str, Any]) -> Iterator[bytes]:
    place = {"item_id": item["id"], "output_index": index}
    if item["type"] == "message":
        (part,) = item["content"]
        yield named("output_text.done", **place, content_index=0, text=part["text"], logprobs=part["logprobs"])
        yield named("content_part.done", **place, content_index=0, part=part)
    else:
        yield named("function_call_arguments.done", **place, name=item["name"], arguments=item["arguments"])
    yield named("output_item.done", output_index=index, item=item)


async def _events(asked: ResponsesRequest, replies: Replies) -> AsyncIterator[bytes]:
    head, message_id, numbers, reply = _head(), new_id("msg_"), itertools.count(), replies.replies[0]

    def named(kind: str, **fields: Any) -> bytes:
        kind = f"response.{kind}"
        return event({"type": kind, "sequence_number": next(numbers), **fields}, kind)

    yield named("created", response=_response(asked, replies, head))
    yield named("in_progress", response=_response(asked, replies, head))
    index = -1  # of the output that has begun
    held: list[TokenLogprobs] = []
    async for piece in replies.pieces():
        if index < 0 and (piece.text or (piece.finish_reason and not reply.calls)):
            index = 0
            for one in _message_begins(named, message_id):
                yield one
        held += piece.logprobs
        if piece.text or (held and index == 0 and not reply.calls):
            place = {"item_id": message_id, "output_index": 0, "content_index": 0}
            known, held = logprob_entries(replies.model.tokenizer, held), []
            yield named("output_text.delta", **place, delta=piece.text, logprobs=known)
        for part in piece.calls:
            if part.name is not None:
                before = _items(replies, message_id)[index] | {"status": "completed"} if index >= 0 else None
                for one in _item_ends(named, index, before) if before else ():
                    yield one
                index += 1
                item = _call_item(reply.calls[part.place], "in_progress", "")
                yield named("output_item.added", output_index=index, item=item)
            else:
                item_id = _call_item(reply.calls[part.place], "", "")["id"]
                place = {"item_id": item_id, "output_index": index}
                yield named("function_call_arguments.delta", **place, delta=part.arguments)
    items = _items(replies, message_id)
    for one in _item_ends(named, index, items[index]):
        yield one
    yield named(items[-1]["status"], response=_response(asked, replies, head, items))


def _failed(refusal: Refusal) -> bytes:
    fields = {"message": refusal.message, "code": refusal.code, "param": refusal.param, "sequence_number": 0}
    return event({"type": "error", **fields}, "error")


RESPONSES = Protocol(ResponsesRequest, responses_wanted, _answer, _events, _failed)
