"""How a model calls tools: found in the checkpoint's own chat template, by rendering it.

A call in a conversation is rendered; what stands before the name, between name and arguments and after them is how this
model writes calls. From it come the grammar that a reply with calls follows, and the reader that finds them in a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from localq.errors import ChatTemplateError, OptionError
from localq.structured.constraints import quoted
from localq.structured.schemas import prepared
from localq.text.chat_template import ChatTemplate
from localq.text.tokenizer import Tokenizer

_USER = {"role": "user", "content": "x"}
_NAME, _ID, _ARGUMENTS = "localq_probe", "localq_id", {"localq_argument": "localq_value"}
_FUNCTION = {"name": _NAME, "description": "d", "parameters": {"type": "object", "properties": {}}}
_TOOL = {"type": "function", "function": _FUNCTION}
_CALL = {"id": _ID, "type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}
_WITH_TYPE = '{"type":"function",'  # some models write it before the name, because the tools have it
# Phi-4-mini: its template shows the tools, but says nothing of calls; its vocabulary has these tokens for them.
_PHI_TOKENS = ("<|tool_call|>", "<|/tool_call|>")
_PHI_RESULT = "<|tool_response|>"


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How calls are written: `first` name `middle` arguments (`between` name `middle` arguments)... `last`."""

    first: str
    middle: str
    between: str | None
    """None: one call in a message."""
    last: str
    hidden: Mapping[str, int] = field(default_factory=dict)
    """Special tokens in these texts: they have no text in a reply."""
    in_system: bool = False
    """Whether tools are a text in the system message, and calls and results plain messages."""
    result_role: str = "tool"

    def conversation(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[list[Mapping[str, Any]], dict[str, Any]]:
        """The messages and variables that the template gets. Calls have arguments as objects."""
        if not self.in_system:
            return [*messages], {"tools": [*tools]} if tools else {}
        made = [self._plain(message) for message in messages]
        if tools:
            system = made.pop(0) if made[0]["role"] == "system" else {"role": "system", "content": ""}
            shown = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
            made.insert(0, {**system, "tools": shown})
        return made, {}

    def _plain(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        if message["role"] == "tool":
            return {"role": self.result_role, "content": message["content"]}
        if not message.get("tool_calls"):
            return message
        calls = [call["function"] for call in message["tool_calls"]]
        texts = [f"{call['name']}{self.middle}{json.dumps(call['arguments'], ensure_ascii=False)}" for call in calls]
        written = self.first + (self.between or "").join(texts) + self.last
        return {"role": "assistant", "content": (message.get("content") or "") + written}

    def grammar(
        self,
        tools: Sequence[Mapping[str, Any]],
        *,
        required: bool,
        several: bool,
        schema: Mapping[str, Any] | None = None,
    ) -> str:
        """In Lark's notation: what a reply with these tools may be.

        Unless `required` that is text as well, or JSON by the schema. Raises OptionError where such JSON may begin as a
        call does.
        """
        more = f"({self._written(self.between)} call)*" if several and self.between else ""
        calls = f"call {more} {self._written(self.last)}"
        lines = ["%llguidance {}", f"call: {' | '.join(map(self._call, tools))}"]
        mark = self._mark
        if required:
            lines.append(f"start: {self._written(self.first)} {calls}")
        elif schema is not None:
            brace = 0 if mark else 1  # apart, as the answer has it: words of a grammar are as long as they can be
            first = f"{self._written(self.first[:brace])} {self._written(self.first[brace:])}"
            lines += [f"start: answer | {first} {calls}", f"answer: {self._answer(schema)}"]
        elif mark in self.hidden:
            lines += [f"start: TEXT? ({self._written(self.first)} {calls})?", "TEXT: /(?s:.+)/"]
        elif mark:
            rest = self._written(self.first[len(mark) :])
            pattern = _pattern(mark)
            lines += [f"start: TEXT | mark {rest} {calls}", f"mark[lazy]: /(?s:.*){pattern}/"]
            lines += [f"TEXT: /(?s:.*)/ & ~/(?s:.*{pattern}.*)/"]
        else:
            pattern = r"\s*" + r"\s*".join(map(_pattern, re.findall(r'"\w+"|\S', self.first)))
            pattern = pattern.replace(r"\{", r'\{\s*("type"\s*:\s*"function"\s*,)?', 1)
            lines += [f"start: TEXT | MARK {calls}", f"MARK: /{pattern}/", f"TEXT: /(?s:.*)/ & ~/(?s:{pattern}.*)/"]
        return "\n".join(lines)

    @property
    def _mark(self) -> str:
        """What tells a call from text wherever it stands; empty where only a reply that begins with JSON is a call."""
        return self.first.partition("[" if self.first.find("[") >= 0 else "{")[0].strip()

    def _answer(self, schema: Mapping[str, Any]) -> str:
        made = prepared(schema)
        names = made.get("properties", {}).keys()
        is_closed = made.get("type") == "object" and made.get("additionalProperties") is False
        if not self._mark and not (is_closed and names.isdisjoint({"name", "type"})):
            reason = "this model's calls are JSON as well; with tools, a schema must be that of an object with named"
            raise OptionError(f"{reason} properties, none of them name or type", "leave the tools or the schema out")
        made["x-guidance"] = {"whitespace_flexible": False}
        return f"%json {json.dumps(made)}"

    def _call(self, tool: Mapping[str, Any]) -> str:
        function = tool["function"]
        schema = prepared({"type": "object", **(function.get("parameters") or {"properties": {}})})
        # Written as the templates write the arguments of earlier calls.
        schema["x-guidance"] = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
        return f"{quoted(function['name'] + self.middle)} %json {json.dumps(schema)}"

    def _written(self, text: str) -> str:
        """A text in a grammar, with its special tokens by number."""
        parts = re.split("|".join(map(re.escape, self.hidden)) or r"(?!)", text)
        tokens = [f"<[{self.hidden[name]}]>" for name in self.tokens(text)]
        pairs = zip(parts, [*tokens, ""], strict=True)
        return " ".join(part for text, token in pairs for part in (quoted(text) if text else "", token) if part)

    def tokens(self, text: str) -> list[str]:
        """The special tokens in a text, in order."""
        return re.findall("|".join(map(re.escape, self.hidden)), text) if self.hidden else []

    def visible(self, text: str) -> str:
        """A text as it appears in a reply."""
        for name in self.hidden:
            text = text.replace(name, "")
        return text

    def reader(self) -> CallReader:
        """For one reply."""
        mark = self.visible(self._mark)
        first = self.visible(self.first)
        return CallReader(self, first, mark or (first if self._mark else ""))


def find_tool_format(template: ChatTemplate, tokenizer: Tokenizer, end_tokens: frozenset[int]) -> ToolFormat:
    """Raises ChatTemplateError for a template that ignores tools, or writes calls in a way that localq can't read."""
    special = {name: number for name, number in tokenizer.added_tokens.items() if not tokenizer.token_bytes(number)}
    ends = [name for name, number in tokenizer.added_tokens.items() if number in end_tokens]
    if _NAME in _rendered(template, [_USER], tools=[_TOOL]):
        return _by_rendering(template, special, ends)
    system = {"role": "system", "content": "x", "tools": _NAME}
    if _NAME in _rendered(template, [system, _USER]) and all(name in tokenizer.added_tokens for name in _PHI_TOKENS):
        opened, ended = _PHI_TOKENS
        hidden = {name: special[name] for name in _PHI_TOKENS if name in special}
        role = "tool_response" if _PHI_RESULT in tokenizer.added_tokens else "tool"
        texts = (opened + '[{"name": "', '", "arguments": ', '}, {"name": "', "}]" + ended)
        return ToolFormat(*texts, hidden=hidden, in_system=True, result_role=role)
    raise ChatTemplateError("this model's chat template ignores tools", "leave the tools out, or use another model")


def _by_rendering(template: ChatTemplate, special: Mapping[str, int], ends: Sequence[str]) -> ToolFormat:
    def called(count: int) -> list[str]:
        """The texts around names and arguments of a rendered message with calls."""
        message = {"role": "assistant", "content": "", "tool_calls": [_CALL] * count}
        prompt = _rendered(template, [_USER], tools=[_TOOL])
        text = _rendered(template, [_USER, message], tools=[_TOOL], add_generation_prompt=False)
        reply = text.removeprefix(prompt) if text.startswith(prompt) else ""
        for end in ends:
            reply = reply.partition(end)[0]
        return re.split(f"{_NAME}|{re.escape(json.dumps(_ARGUMENTS))}", reply)

    one, two = called(1), called(2)
    if len(one) != 3 or any(_ID in text for text in one) or "{" not in one[0]:
        raise ChatTemplateError("localq can't read how this model's chat template writes calls of tools")
    between = two[2] if len(two) == 5 else None
    hidden = {name: number for name, number in special.items() if name in "".join(one)}
    return ToolFormat(one[0].lstrip(), one[1], between, one[2].rstrip(), hidden)


def _rendered(template: ChatTemplate, messages: list[Mapping[str, Any]], **variables: Any) -> str:
    try:
        return template.render(messages, **variables)
    except ChatTemplateError:
        return ""


def _pattern(text: str) -> str:
    return re.escape(text).replace("/", r"\/")


@dataclass(frozen=True, slots=True)
class CallPart:
    """Something new of a call."""

    place: int
    """Which call of the reply."""
    name: str | None = None
    """At its beginning."""
    arguments: str = ""


class CallReader:
    """Finds the calls in the text of a reply as it comes."""

    def __init__(self, form: ToolFormat, first: str, mark: str) -> None:
        """`first` as it is visible; `mark` begins a call anywhere, and empty only a reply that begins with `first`."""
        self._form, self._mark = form, mark
        self._starts = (_packed(first), _packed(first).replace("{", _WITH_TYPE, 1))
        self._held, self._state, self._count = "", "text", 0
        self._is_text = False
        """Whether the reply is not a call, to its end."""
        self._depth, self._in_string, self._is_escaped = 0, False, False

    def push(self, text: str, is_end: bool = False) -> tuple[str, list[CallPart]]:
        """More of the reply: what of it is text, and what is new of calls."""
        self._held += text
        if self._is_text:
            said, self._held = self._held, ""
            return said, []
        said = self._text(is_end) if self._state == "text" else ""
        return said, list(self._calls()) if self._state != "text" else []

    def _text(self, is_end: bool) -> str:
        """What is text for certain; the state changes where a call begins."""
        place = self._held.find(self._mark) if self._mark else 0
        if place < 0:
            kept = next(n for n in range(len(self._mark), -1, -1) if self._held.endswith(self._mark[:n]))
            place = len(self._held) - kept
        rest = _packed(self._held[place:])
        start = next((one for one in self._starts if rest.startswith(one)), None)
        if start is not None:
            said, self._held = self._held[:place], _after(self._held[place:], start)
            self._state = "name"
            return said
        if is_end or not any(one.startswith(rest) for one in self._starts):
            place = len(self._held)
            self._is_text = not self._mark
        said, self._held = self._held[:place], self._held[place:]
        return said

    def _calls(self) -> Iterator[CallPart]:
        while self._held:
            if self._state == "name":
                name, found, rest = self._held.partition(self._form.middle)
                if not found:
                    return
                self._held, self._state = rest, "arguments"
                yield CallPart(self._count, name)
            elif self._state == "arguments":
                end = self._end_of_arguments()
                piece, self._held = self._held[:end], self._held[end:]
                yield CallPart(self._count, arguments=piece)
                if self._depth == 0:
                    self._state, self._count = "after", self._count + 1
            else:
                between = self._form.between
                if between is None or not self._held.startswith(between):
                    return
                self._held, self._state = self._held[len(between) :], "name"

    def _end_of_arguments(self) -> int:
        """How many of the held characters belong to the arguments."""
        for place, character in enumerate(self._held):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped, self._in_string = character == "\\", character != '"'
            elif character == '"':
                self._in_string = True
            else:
                self._depth += (character in "{[") - (character in "}]")
                if self._depth == 0:
                    return place + 1
        return len(self._held)


def _packed(text: str) -> str:
    return "".join(text.split())


def _after(text: str, start: str) -> str:
    """What follows a beginning that is written with or without blanks."""
    for character in start:
        text = text[text.index(character) + 1 :]
    return text
