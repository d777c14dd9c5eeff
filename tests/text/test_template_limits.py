"""Chat templates that take time, memory or length without end."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from localq.errors import ChatTemplateError
from localq.text.chat_template import ChatTemplate, load_chat_template
from localq.text.template_process import PROCESS

MESSAGES = [{"role": "user", "content": "Hi"}]


def _render(source: str) -> str:
    return ChatTemplate(source, {}).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{{ [1] | tojson(indent=10**9) }}",
        "{{ strftime_now('%Y' * 10**6) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ [0] * 10**9 }}",
        "{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
    ],
)
def test_memory_and_length_are_bounded(source: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"the chat template failed: it (needs more|writes more|takes longer)"):
        _render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 10**100000000 }}",
    ],
)
def test_time_is_bounded(source: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"the chat template failed: it takes longer than 1\.5 seconds"):
        _render(source)
    assert _render("{{ messages[0].content }}") == "Hi"


@pytest.mark.parametrize(
    "source", ["{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}"]
)
def test_a_recursion_without_end_is_an_error_of_the_template(source: str) -> None:
    with pytest.raises(ChatTemplateError, match="RecursionError"):
        _render(source)


def test_a_long_conversation_is_rendered_whole() -> None:
    text = "Wörter " * 1_000_000
    template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})
    assert template.render([{"role": "user", "content": text}]) == text


def test_what_a_template_says_is_escaped_and_cut() -> None:
    with pytest.raises(ChatTemplateError) as refusal:
        _render("{{ raise_exception('\x1b[31mred\nline' ~ 'x' * 1000000) }}")
    assert refusal.value.message.startswith(r"the chat template refuses these messages: \x1b[31mred\nline")
    assert len(refusal.value.message) < 1000


def test_a_process_that_was_ended_is_started_again() -> None:
    assert _render("{{ 1 }}") == "1"
    assert PROCESS._process is not None
    os.kill(PROCESS._process.pid, signal.SIGKILL)
    PROCESS._process.wait()
    assert _render("{{ 2 }}") == "2"


def test_threads_get_their_own_texts() -> None:
    found: dict[int, set[str]] = {number: set() for number in range(8)}

    def render(number: int) -> None:
        found[number] |= {ChatTemplate(f"{{{{ {number} }}}}", {}).render(MESSAGES) for _ in range(50)}

    threads = [threading.Thread(target=render, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: {str(number)} for number in found}


def test_a_template_file_of_absurd_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("x" * (5 << 20))
    with pytest.raises(ChatTemplateError, match=r"chat_template\.jinja can't be read: it has 5,242,880 bytes"):
        load_chat_template(tmp_path)
