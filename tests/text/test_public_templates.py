"""Public models' chat templates against Hugging Face's own renderer: equal text, or both refuse.

The templates are not localq's to give away: they lie in llama.cpp's source, in models/templates, and these tests run
where LLAMA_CPP_SOURCE names a copy of it. `pip download --no-deps --no-binary :all: llama-cpp-python` fetches one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from localq.errors import ChatTemplateError
from localq.text.chat_template import ChatTemplate

SOURCE = os.environ.get("LLAMA_CPP_SOURCE")
FOLDER = Path(SOURCE or "nowhere") / "models" / "templates"
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

SYSTEM = {"role": "system", "content": " Be brief. "}
USER = {"role": "user", "content": ' Hi <there> & "you" é\n'}
REPLY = {"role": "assistant", "content": "Hello 日本語"}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello", "reasoning_content": "hm"}
CALL = {"id": "abcdef123", "type": "function", "function": {"name": "w", "arguments": {"city": "Köln", "n": 1.5}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "w", "tool_call_id": "abcdef123", "content": '{"degrees": 3}'}
PARTS = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one message": [USER],
    "a system message": [SYSTEM, USER],
    "turns": [SYSTEM, USER, REPLY, USER],
    "a thought": [USER, THOUGHT, USER],
    "a tool call": [USER, CALLED, RESULT, REPLY, USER],
    "a tool call alone": [USER, CALLED],
    "parts": [PARTS],
    "wrong order": [REPLY, REPLY],
    "an unknown role": [{"role": "narrator", "content": "Once"}],
}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "A <city>", "enum": ["Köln", "Rom"]}},
    "required": ["city"],
}
TOOL = {"type": "function", "function": {"name": "w", "description": "Gets <weather>", "parameters": PARAMETERS}}
VARIABLES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tools": {"tools": [TOOL], "date_string": "1 Jan 2025"},
    "thinking": {"enable_thinking": True, "add_generation_prompt": False},
}


def templates() -> list[Path]:
    return sorted(FOLDER.glob("*.jinja"))


def renderings(source: str) -> Iterator[tuple[str, str, str]]:
    """The name of a case, and the text or the refusal of localq and of transformers."""
    for conversation, messages in CONVERSATIONS.items():
        for name, variables in VARIABLES.items():
            own = {**SPECIAL, "add_generation_prompt": True, **variables}
            yield f"{conversation}, {name}", rendered_here(source, messages, own), rendered_there(source, messages, own)


def rendered_here(source: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    options = {key: value for key, value in variables.items() if key not in SPECIAL}
    try:
        return ChatTemplate(source, SPECIAL).render(messages, **options)
    except ChatTemplateError:
        return "refused"


def rendered_there(source: str, messages: list[dict[str, Any]], variables: dict[str, Any]) -> str:
    try:
        rendered: list[str] = render_jinja_template([messages], chat_template=source, **variables)[0]
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
        return "refused"
    return rendered[0]


@pytest.mark.skipif(SOURCE is None, reason="LLAMA_CPP_SOURCE names no copy of llama.cpp's source")
def test_public_templates_render_as_in_transformers() -> None:
    assert len(templates()) >= 50
    different, texts = [], 0
    for path in templates():
        for case, here, there in renderings(path.read_text(encoding="utf-8")):
            texts += there != "refused"
            if here != there:
                different.append(f"{path.name}: {case}")
    assert not different
    assert texts > 10 * len(templates())
