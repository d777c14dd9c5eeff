"""Tools as OpenAI's protocols describe them: what may be called, calls and their results in a conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from localq.serve.core import Call, Reply, Tools
from localq.serve.intake import Strict
from localq.serve.protocols import AbsentList, Content, FromReply, Text, joined
from localq.serve.refusals import Refusal
from localq.structured.tools import CallPart

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
MOST_TOOLS = 128


class Function(Strict):
    """A function that the client has."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema; always kept.")
    strict: bool | None = Field(default=None, description="Changes nothing: the schema is always kept.")

    def described(self) -> dict[str, Any]:
        """As chat templates read it."""
        parameters = self.parameters or {"type": "object", "properties": {}}
        described = {"name": self.name, "description": self.description or "", "parameters": parameters}
        return {"type": "function", "function": described}


class Tool(Strict):
    """A tool."""

    type: Literal["function"]
    function: Function


class Named(Strict):
    """The name of a function."""

    name: Name


class NamedTool(Strict):
    """The tool to call."""

    type: Literal["function"]
    function: Named


class CalledFunction(FromReply):
    """What was called."""

    name: Name
    arguments: str


class ToolCall(FromReply):
    """A call in an earlier reply."""

    id: Text
    type: Literal["function"]
    function: CalledFunction
    index: int | None = Field(default=None, description="As streams number calls; changes nothing.")


class CallingMessage(FromReply):
    """An earlier reply with calls."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)]
    name: Text | None = None
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: AbsentList = None

    def plain(self) -> dict[str, Any]:
        """As chat templates read it."""
        calls = [call_in_history(one.id, one.function.name, one.function.arguments) for one in self.tool_calls]
        return {"role": "assistant", "content": joined(self.content or ""), "tool_calls": calls}


class ToolMessage(Strict):
    """What a call gave."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Text
    name: Text | None = None

    def plain(self) -> dict[str, Any]:
        """As chat templates read it."""
        named = {} if self.name is None else {"name": self.name}
        return {"role": "tool", "content": joined(self.content), "tool_call_id": self.tool_call_id, **named}


def call_in_history(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call of an earlier reply as chat templates read it: arguments are an object. Raises Refusal."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Refusal(400, f"the arguments of the call {call_id!r} are not an object in JSON", code="invalid_value")
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": value}}


def chosen_tools(
    functions: Sequence[Function], choice: str | None, several: bool | None, options: Mapping[str, Any]
) -> Tools | None:
    """What may be called; `choice` is none, auto, required, or a function's name after a colon. Raises Refusal."""
    names = [one.name for one in functions]
    is_named = choice is not None and choice.startswith(":")
    only = choice.removeprefix(":") if choice is not None and is_named else None
    if choice not in (None, "none", "auto") and not functions:
        raise Refusal(400, "tool_choice needs tools", "tool_choice", "invalid_value")
    if only is not None and only not in names:
        raise Refusal(400, f"tool_choice names {only!r}, which is not in tools", "tool_choice", "invalid_value")
    if len({*names}) < len(names):
        raise Refusal(400, "tools has two functions of one name", "tools", "invalid_value")
    if not functions or choice == "none":
        return None
    if any(options.get(form) for form in ("regex", "choice", "grammar")):
        reason = "a reply can't have tools and a regex, choice or grammar; leave one of them out"
        raise Refusal(400, reason, "tools", "invalid_value")
    offered = tuple(one.described() for one in functions)
    return Tools(offered, choice == "required" or is_named, several is not False and not is_named, only)


def choice_name(choice: str | NamedTool | None) -> str | None:
    """As `chosen_tools` takes it."""
    return f":{choice.function.name}" if isinstance(choice, NamedTool) else choice


def finished(call: Call) -> dict[str, Any]:
    """The arguments of a call; empty where it was cut."""
    try:
        value = json.loads(call.arguments)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def whole_calls(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """The calls of a reply as chats have them."""
    return [
        {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}} for one in calls
    ]


def call_delta(reply: Reply, part: CallPart) -> dict[str, Any]:
    """Something new of a call as a chat's chunk has it."""
    if part.name is None:
        return {"index": part.place, "function": {"arguments": part.arguments}}
    call = {"id": reply.calls[part.place].id, "type": "function"}
    return {"index": part.place, **call, "function": {"name": part.name, "arguments": ""}}


def _kind(message: Any) -> str:
    if not isinstance(message, dict):
        return "message"
    return "tool" if message.get("role") == "tool" else "calls" if message.get("tool_calls") else "message"


BY_KIND = Discriminator(_kind)
CALLING = Annotated[CallingMessage, Tag("calls")]
RESULT = Annotated[ToolMessage, Tag("tool")]
