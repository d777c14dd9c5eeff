"""Calls of tools: formats found in templates, grammars that keep them, the reader that finds calls in a text."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from localq.errors import ChatTemplateError
from localq.structured.constraints import Grammars
from localq.structured.tools import CallPart, ToolFormat, find_tool_format
from localq.text.chat_template import ChatTemplate
from localq.text.tokenizer import decode_tokens

TURN = "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
END = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
LLAMA = (
    "{{ bos_token }}{% if tools %}<|system|>Tools, as {\"name\": .., \"parameters\": ..}: "
    "{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}{% for message in messages %}"
    "{% if 'tool_calls' in message %}{% if message.tool_calls | length != 1 %}{{ raise_exception('one call only') }}"
    "{% endif %}{% set call = message.tool_calls[0].function %}"
    "<|assistant|>{\"name\": \"{{ call.name }}\", \"parameters\": {{ call.arguments | tojson }}}<|end|>"
    "{% elif message.role == 'tool' %}<|ipython|>{{ message.content }}<|end|>{% else %}" + TURN + "{% endif %}"
    "{% endfor %}" + END
)  # fmt: skip
HERMES = (
    "{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}{% for message in messages %}"
    "{% if message.tool_calls %}<|assistant|>{{ message.content }}{% for call in message.tool_calls %}"
    "{% if not loop.first %}{{ '\n' }}{% endif %}<tool_call>\n{\"name\": \"{{ call.function.name }}\", \"arguments\": "
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|end|>{% else %}" + TURN + "{% endif %}"
    "{% endfor %}" + END
)  # fmt: skip
PHI_4_MINI = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message %}"
    "{{ '<|system|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + END
)
IGNORES_TOOLS = "{% for message in messages %}" + TURN + "{% endfor %}" + END

USER = {"role": "user", "content": "How warm is it?"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "a \"b\\", "日本 }"]}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city"],
    "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "now"}},
]
ENDS = frozenset({256})


class Bytes:
    """A vocabulary of bytes and a few tokens of its own."""

    strips_leading_space = False
    vocabulary_size = 262
    special_tokens: Mapping[str, str] = {"eos_token": "<|end|>"}

    def __init__(self, shows_marks: bool) -> None:
        """`shows_marks`: whether the tokens of calls have a text."""
        self.added_tokens = {"<|end|>": 256, "<|tool_call|>": 257, "<|/tool_call|>": 258, "<|tool_response|>": 259}
        self.added_tokens |= {"<tool_call>": 260, "</tool_call>": 261}
        self._texts = {number: name for name, number in self.added_tokens.items() if shows_marks and number != 256}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else self._texts.get(token_id, "").encode()

    def token_id(self, token: str) -> int | None:
        return self.added_tokens.get(token)

    def decode(self, token_ids: Iterable[int]) -> str:
        return decode_tokens(self, token_ids)


def form_of(source: str, shows_marks: bool = True) -> ToolFormat:
    return find_tool_format(ChatTemplate(source, {"bos_token": "<s>"}), Bytes(shows_marks), ENDS)


def read(form: ToolFormat, pieces: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """The text and the calls (name, arguments) of a reply that comes in pieces."""
    reader = form.reader()
    said, calls = "", list[tuple[str, str]]()
    for number, piece in enumerate(pieces):
        text, parts = reader.push(piece, is_end=number == len(pieces) - 1)
        said += text
        for part in parts:
            assert isinstance(part, CallPart)
            if part.name is not None:
                assert part.place == len(calls)
                calls.append((part.name, ""))
            calls[part.place] = (calls[part.place][0], calls[part.place][1] + part.arguments)
    return said, calls


def walk(form: ToolFormat, tokenizer: Bytes, grammar: str, begun: str, seed: int) -> str:
    """A random reply that the grammar allows, from a beginning on."""
    draw = random.Random(seed)
    constraint = Grammars(tokenizer, ENDS).lark(grammar)
    ids = list(begun.encode())
    for token in ids:
        constraint.accept(token)
    while len(ids) < 2000:
        words = constraint.mask()
        assert words is not None
        allowed = [number for number in range(tokenizer.vocabulary_size) if words[number // 32] >> number % 32 & 1]
        token = 256 if 256 in allowed and draw.random() < 0.5 else draw.choice(allowed)
        if token == 256:
            return tokenizer.decode(ids)
        ids.append(token)
        constraint.accept(token)
    raise AssertionError(tokenizer.decode(ids))


def check_calls(calls: list[tuple[str, str]]) -> None:
    for name, arguments in calls:
        value = json.loads(arguments)
        if name == "now":
            assert value == {}
        else:
            assert name == "weather" and value["city"] in PARAMETERS["properties"]["city"]["enum"]  # type: ignore[index]
            assert set(value) <= {"city", "days"} and 1 <= value.get("days", 1) <= 9


FORMS = [
    pytest.param(LLAMA, True, id="llama"),
    pytest.param(HERMES, True, id="hermes"),
    pytest.param(PHI_4_MINI, True, id="phi-4-mini"),
    pytest.param(PHI_4_MINI, False, id="phi-4-mini with special tokens"),
]


def test_formats_are_found_by_rendering() -> None:
    llama, hermes, phi = form_of(LLAMA), form_of(HERMES), form_of(PHI_4_MINI)
    assert (llama.first, llama.middle, llama.between, llama.last) == ('{"name": "', '", "parameters": ', None, "}")
    assert hermes.between == '}\n</tool_call>\n<tool_call>\n{"name": "' and hermes.last == "}\n</tool_call>"
    assert phi.in_system and phi.first == '<|tool_call|>[{"name": "' and phi.last == "}]<|/tool_call|>"
    for source in (IGNORES_TOOLS, LLAMA.replace("call.arguments", "call.other")):
        with pytest.raises(ChatTemplateError, match="tools"):
            form_of(source)


@pytest.mark.parametrize(("source", "shows_marks"), FORMS)
def test_required_calls_obey_their_schema_whatever_is_drawn(source: str, shows_marks: bool) -> None:
    form, tokenizer = form_of(source, shows_marks), Bytes(shows_marks)
    several = form.grammar(TOOLS, required=True, several=True)
    replies = [walk(form, tokenizer, several, "", seed) for seed in range(12)]
    counts = set()
    for reply in replies:
        said, calls = read(form, [reply])
        assert said == "" and calls
        check_calls(calls)
        counts.add(len(calls))
        assert read(form, [*reply]) == (said, calls), "one character at a time"
        for place in range(1, len(reply)):
            assert read(form, [reply[:place], reply[place:]]) == (said, calls)
    assert (counts == {1}) == (form.between is None)
    one = form.grammar(TOOLS[1:], required=True, several=False)
    assert read(form, [walk(form, tokenizer, one, "", 1)]) == ("", [("now", "{}")])


@pytest.mark.parametrize(("source", "shows_marks"), FORMS[:3])
def test_a_reply_may_be_text_or_a_call_that_obeys_its_schema(source: str, shows_marks: bool) -> None:
    form, tokenizer = form_of(source), Bytes(shows_marks)
    grammar = form.grammar(TOOLS, required=False, several=True)
    for text in ("", "It is {warm}.", '{"names": 3}', "a < b <tool", "日本"):
        constraint = Grammars(tokenizer, ENDS).lark(grammar)
        for token in text.encode():
            constraint.accept(token)
        words = constraint.mask()
        assert words is not None and words[8] & 1, "it may end there"
        assert read(form, [*text, ""]) == (text, [])
    mark = form.first.partition("[" if "[" in form.first else "{")[0]
    for begun in [mark, f"Let me see.\n{mark}"] if mark else ['{"name": "', ' {"type": "function", "name":"']:
        for seed in range(5):
            said, calls = read(form, [*walk(form, tokenizer, grammar, begun, seed)])
            assert calls and said.strip() == begun.removesuffix(mark).strip() * bool(mark)
            check_calls(calls)


def test_a_cut_call_is_no_call_until_its_name_is_there() -> None:
    form = form_of(LLAMA)
    assert read(form, ['{"name": "wea']) == ("", [])
    assert read(form, ['{"name": "weather", "parameters": {"ci']) == ("", [("weather", '{"ci')])
    assert read(form, ['{"nam']) == ('{"nam', [])


def test_calls_and_results_in_a_conversation_are_rendered() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
    history: list[Mapping[str, Any]] = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "9 degrees", "tool_call_id": "call_1"},
    ]

    def rendered(source: str) -> str:
        messages, variables = form_of(source).conversation(history, TOOLS)
        return ChatTemplate(source, {"bos_token": "<s>"}).render(messages, **variables)

    assert '<|assistant|>{"name": "weather", "parameters": {"city": "Paris"}}<|end|>' in rendered(LLAMA)
    phi = rendered(PHI_4_MINI)
    assert '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]<|/tool_call|><|end|>' in phi
    assert "<|tool_response|>9 degrees<|end|>" in phi
    assert phi.startswith('<|system|><|tool|>[{"name": "weather", "description": "Tells it.", "parameters": {')


@pytest.mark.skipif("LLAMA_CPP_SOURCE" not in os.environ, reason="LLAMA_CPP_SOURCE does not name llama.cpp's source")
@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Llama-3.2-3B", "Llama-3.3-70B", "Phi-3.5-mini"])
def test_public_templates(name: str) -> None:
    folder = Path(os.environ["LLAMA_CPP_SOURCE"]) / "models" / "templates"
    (file,) = folder.glob(f"*{name}-[Ii]nstruct.jinja")
    source = file.read_text(encoding="utf-8").replace("<|eot_id|>", "<|end|>")
    if name == "Phi-3.5-mini":
        with pytest.raises(ChatTemplateError, match="ignores tools"):
            form_of(source)
    else:
        assert form_of(source) == form_of(LLAMA)
