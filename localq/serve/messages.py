"""Anthropic's `/v1/messages`, and the count of a request's tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from localq.serve.core import Call, Piece, Replies, Reply, Tools, Wanted
from localq.serve.intake import Strict
from localq.serve.protocols import (
    WHOLE,
    Absent,
    Content,
    Count,
    Drawn,
    Named,
    NotNegative,
    Off,
    Protocol,
    StopStrings,
    Text,
    TextPart,
    event,
    joined,
    new_id,
)
from localq.serve.refusals import Refusal
from localq.serve.tools import MOST_TOOLS, Function, Name, chosen_tools, finished
from localq.text.tokenizer import decode_tokens


class ToolUse(Strict):
    """A call in an earlier reply."""

    type: Literal["tool_use"]
    id: Text
    name: Name
    input: dict[str, Any]
    cache_control: dict[str, Any] | None = None
    caller: dict[str, Any] | None = None


class ToolResult(Strict):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: Text
    content: Content | None = None
    is_error: bool | None = None
    cache_control: dict[str, Any] | None = None


class Thinking(Strict):
    """What was thought before an earlier reply."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class HiddenThinking(Strict):
    """The same, encrypted: only who wrote it can read it."""

    type: Literal["redacted_thinking"]
    data: str


_Block = Annotated[TextPart | ToolUse | ToolResult | Thinking | HiddenThinking, Field(discriminator="type")]


class Message(Strict):
    """A message of the conversation. One of the assistant at the end begins the reply."""

    role: Literal["user", "assistant"]
    content: str | list[_Block]

    def plain(self) -> list[dict[str, Any]]:
        """As chat templates read it: results of calls are messages of their own, before the text."""
        if isinstance(self.content, str):
            return [{"role": self.role, "content": self.content}]
        text = joined([part for part in self.content if isinstance(part, TextPart)])
        calls = [
            {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": part.input}}
            for part in self.content
            if isinstance(part, ToolUse)
        ]
        results = [
            {"role": "tool", "content": joined(part.content or ""), "tool_call_id": part.tool_use_id}
            for part in self.content
            if isinstance(part, ToolResult)
        ]
        thoughts = "\n".join(part.thinking for part in self.content if isinstance(part, Thinking))
        thought = {"reasoning_content": thoughts} if thoughts else {}
        said = {"role": self.role, "content": text, **thought, **({"tool_calls": calls} if calls else {})}
        return [*results, *([said] if text or calls or not results else [])]


class Metadata(Strict):
    """About the user."""

    user_id: Text | None = None


class NoThinking(Strict):
    """No thinking, or as much as the model sees fit: models here think in their text, if at all."""

    type: Literal["disabled", "adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class ThinkingBudget(Strict):
    """At most so many tokens of thinking; models here think in their text, if at all."""

    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1024), WHOLE]
    display: Literal["summarized", "omitted"] | None = None


class JsonSchemaFormat(Strict):
    """JSON by a schema, which is always kept."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """The form of the reply."""

    format: JsonSchemaFormat | None = None
    effort: Absent = None


class Tool(Strict):
    """A tool that the client has."""

    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = Field(default=None, description="Changes nothing: the schema is always kept.")
    cache_control: dict[str, Any] | None = None
    eager_input_streaming: bool | None = Field(default=None, description="Changes nothing: arguments come as made.")
    defer_loading: Off | None = None
    allowed_callers: list[Literal["direct"]] | None = None


class ToolChoice(Strict):
    """Whether and what to call."""

    type: Literal["none", "auto", "any", "tool"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class CountRequest(Named):
    """A request for the number of its tokens."""

    messages: Annotated[list[Message], Field(min_length=1)]
    system: Content | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Annotated[NoThinking | ThinkingBudget, Field(discriminator="type")] | None = None
    cache_control: dict[str, Any] | None = Field(default=None, description="Changes nothing: prompts are cached.")
    output_config: OutputConfig | None = None
    speed: Literal["standard"] | None = None

    def conversation(self) -> list[dict[str, Any]]:
        """Its messages, the system's first."""
        system = [] if self.system is None else [{"role": "system", "content": joined(self.system)}]
        return [*system, *(plain for one in self.messages for plain in one.plain())]

    @property
    def schema_(self) -> dict[str, Any] | None:
        """What the reply must follow."""
        form = self.output_config.format if self.output_config else None
        return form.schema_ if form else None

    def offered(self) -> Tools | None:
        """The tools. Raises Refusal."""
        form = {"schema": self.schema_}
        functions = [
            Function(name=one.name, description=one.description, parameters=one.input_schema)
            for one in self.tools or ()
        ]
        asked = self.tool_choice or ToolChoice(type="auto")
        choice = {"any": "required", "tool": f":{asked.name}"}.get(asked.type, asked.type)
        return chosen_tools(functions, choice, not asked.disable_parallel_tool_use, form)


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
    return Wanted(asked.model, (tuple(asked.conversation()),), tools=asked.offered())


def _wanted(asked: MessagesRequest) -> Wanted:
    messages, begun = asked.conversation(), ""
    if messages[-1]["role"] == "assistant" and len(messages) > 1 and "tool_calls" not in messages[-1]:
        begun = messages.pop()["content"]
    return Wanted(
        model=asked.model,
        prompts=(tuple(messages),),
        max_tokens=asked.max_tokens,
        options=asked.options(stop=asked.stop_sequences, schema=asked.schema_),
        begun=begun,
        tools=asked.offered(),
    )


def _stopped(asked: MessagesRequest, replies: Replies, reply: Reply) -> dict[str, Any]:
    """The fields `stop_reason` and `stop_sequence`."""
    if reply.finish_reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if reply.finish_reason == "tool_calls":
        return {"stop_reason": "tool_use", "stop_sequence": None}
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
    text, calls = whole[0].text, whole[0].calls
    content: list[dict[str, Any]] = [_text_block(text)] if text or not calls else []
    content += [_tool_block(call, finished(call)) for call in calls]
    return _message(replies, content, _stopped(asked, replies, whole[0]), _usage(replies))


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def _tool_block(call: Call, value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": value}


def _blocks(reply: Reply, piece: Piece) -> Iterator[tuple[dict[str, Any] | None, dict[str, Any] | None]]:
    """What is new: a block that begins, or a delta of the last one."""
    if piece.text:
        yield None, {"type": "text_delta", "text": piece.text}
    for part in piece.calls:
        if part.name is not None:
            yield _tool_block(reply.calls[part.place], {}), None
        else:
            yield None, {"type": "input_json_delta", "partial_json": part.arguments}


async def _events(asked: MessagesRequest, replies: Replies) -> AsyncIterator[bytes]:
    def named(kind: str, **fields: Any) -> bytes:
        return event({"type": kind, **fields}, kind)

    begun = _message(replies, [], {"stop_reason": None, "stop_sequence": None}, _usage(replies))
    yield named("message_start", message=begun)
    index, reply = -1, replies.replies[0]
    async for piece in replies.pieces():
        for block, delta in _blocks(reply, piece):
            if block is not None or index < 0:
                if index >= 0:
                    yield named("content_block_stop", index=index)
                index += 1
                yield named("content_block_start", index=index, content_block=block or _text_block(""))
            if delta is not None:
                yield named("content_block_delta", index=index, delta=delta)
    if index < 0:
        index = 0
        yield named("content_block_start", index=0, content_block=_text_block(""))
    yield named("content_block_stop", index=index)
    yield named("message_delta", delta=_stopped(asked, replies, reply), usage=_usage(replies))
    yield named("message_stop")


def _failed(refusal: Refusal) -> bytes:
    return event(refusal.body("/v1/messages"), "error")


MESSAGES = Protocol(MessagesRequest, _wanted, _answer, _events, _failed)
