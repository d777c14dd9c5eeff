"""OpenAI's `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from localq.generation import TokenLogprobs
from localq.serve.choices import Choices, ChoicesRequest
from localq.serve.core import Piece, Replies, Wanted
from localq.serve.intake import Strict
from localq.serve.protocols import (
    WHOLE,
    Absent,
    AbsentList,
    Content,
    Count,
    FromReply,
    JsonFormat,
    Protocol,
    SchemaFormat,
    Text,
    TextFormat,
    joined,
    logprob_entries,
)
from localq.serve.refusals import Refusal
from localq.serve.tools import (
    BY_KIND,
    CALLING,
    MOST_TOOLS,
    RESULT,
    NamedTool,
    Tool,
    call_delta,
    choice_name,
    chosen_tools,
    whole_calls,
)


class Message(FromReply):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Text | None = None
    reasoning_content: str | None = None
    refusal: Absent = None
    audio: Absent = None
    function_call: Absent = None
    tool_calls: AbsentList = None
    annotations: AbsentList = None

    def plain(self) -> dict[str, Any]:
        """As chat templates have it: `developer` is OpenAI's newer name of the system's role."""
        role = "system" if self.role == "developer" else self.role
        given = {"name": self.name, "reasoning_content": self.reasoning_content}
        kept = {name: value for name, value in given.items() if value is not None}
        return {"role": role, "content": joined(self.content), **kept}


_Message = Annotated[Annotated[Message, Tag("message")] | CALLING | RESULT, BY_KIND]


class JsonSchemaFormat(Strict):
    """JSON by a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaFormat

    @property
    def schema_(self) -> dict[str, Any]:
        """The schema."""
        return self.json_schema.schema_


_Format = Annotated[TextFormat | JsonFormat | JsonSchemaFormat, Field(discriminator="type")]


class ChatRequest(ChoicesRequest):
    """A request for replies to a conversation."""

    messages: Annotated[list[_Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = Field(default=None, description="The older name of max_completion_tokens.")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    response_format: _Format | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    reasoning_effort: Literal["none"] | None = None
    verbosity: Literal["medium"] | None = None
    audio: Absent = None
    functions: AbsentList = None
    function_call: Literal["none", "auto"] | None = None
    prediction: Absent = None
    web_search_options: Absent = None


def _wanted(asked: ChatRequest) -> Wanted:
    asked.check_stream_options()
    if asked.top_logprobs is not None and not asked.logprobs:
        raise Refusal(400, "top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
    limits = {limit for limit in (asked.max_completion_tokens, asked.max_tokens) if limit is not None}
    if len(limits) > 1:
        raise Refusal(400, "max_tokens and max_completion_tokens differ; give one", "max_tokens", "invalid_value")
    schema = asked.response_format.schema_ if asked.response_format else None
    options = asked.options(asked.top_logprobs or 0 if asked.logprobs else None, asked.stop, schema)
    functions = [tool.function for tool in asked.tools or ()]
    return Wanted(
        model=asked.model,
        prompts=(tuple(message.plain() for message in asked.messages),),
        count=asked.n or 1,
        max_tokens=limits.pop() if limits else None,
        options=options,
        tools=chosen_tools(functions, choice_name(asked.tool_choice), asked.parallel_tool_calls, options),
    )


class _Chat(Choices):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl-"

    def whole(self, asked: ChatRequest, replies: Replies, index: int) -> dict[str, Any]:
        reply = replies.replies[index]
        content = reply.text or (None if reply.calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
        if reply.calls:
            message["tool_calls"] = whole_calls(reply.calls)
        return {"message": message, **_logprobs(asked, replies, reply.logprobs)}

    def first(self, asked: ChatRequest, replies: Replies, index: int) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": "", "refusal": None}}

    def part(self, asked: ChatRequest, replies: Replies, piece: Piece) -> dict[str, Any]:
        if piece.calls:
            reply = replies.replies[piece.index]
            return {"delta": {"tool_calls": [call_delta(reply, part) for part in piece.calls]}}
        delta = {"content": piece.text} if piece.text or piece.logprobs else {}
        return {"delta": delta, **_logprobs(asked, replies, piece.logprobs)}


def _logprobs(asked: ChatRequest, replies: Replies, tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    if not asked.logprobs:
        return {}
    return {"logprobs": {"content": logprob_entries(replies.model.tokenizer, tokens), "refusal": None}}


_CHOICES = _Chat()
CHAT = Protocol(ChatRequest, _wanted, _CHOICES.answer, _CHOICES.events, _CHOICES.failed)
