"""The prompt, typed at through prompt_toolkit's pipe: what a person's keys become."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from localq.chat.commands import complete
from localq.chat.prompt import TerminalPrompt, is_unfinished, without_quotes
from localq.chat.terminal import HeldKeys

ENTER, ALT_ENTER, TAB, CTRL_R, UP = "\r", "\x1b\r", "\t", "\x12", "\x1b[A"
PASTE, PASTE_END = "\x1b[200~", "\x1b[201~"


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def typed(keys: PipeInput, *texts: str, history: Path | None = None) -> list[str]:
    prompt = TerminalPrompt(complete, history)
    answers = []
    for text in texts:
        keys.send_text(text)
        answers.append(prompt.ask())
    return answers


def test_enter_sends_and_alt_enter_begins_another_line(keys: PipeInput) -> None:
    assert typed(keys, "one" + ENTER, "one" + ALT_ENTER + "two" + ENTER) == ["one", "one\ntwo"]


def test_triple_quotes_open_a_message_of_several_lines(keys: PipeInput) -> None:
    prompt = TerminalPrompt(complete, None)
    pieces = ['"""one', ENTER, "two", ENTER, '"""', ENTER]

    def type_slowly() -> None:
        for piece in pieces:
            keys.send_text(piece)
            pause.wait(0.05)

    pause = threading.Event()
    typist = threading.Thread(target=type_slowly)
    typist.start()
    assert prompt.ask() == "one\ntwo"
    typist.join()


def test_a_paste_of_ten_thousand_lines_is_one_message(keys: PipeInput) -> None:
    text = "\n".join(f"line {number}" for number in range(10_000))
    sender = threading.Thread(target=keys.send_text, args=(PASTE + text + PASTE_END + ENTER,))
    sender.start()
    assert TerminalPrompt(complete, None).ask() == text
    sender.join()


def test_lines_that_arrive_at_once_without_paste_marks_are_one_message(keys: PipeInput) -> None:
    assert typed(keys, "one\rtwo\rthree" + ENTER) == ["one\ntwo\nthree"]


def test_what_was_typed_before_comes_back(keys: PipeInput, tmp_path: Path) -> None:
    history = tmp_path / "folder" / "history"
    typed(keys, "What is the capital of France?" + ENTER, "other" + ENTER, history=history)
    assert typed(keys, UP + UP + ENTER, history=history) == ["What is the capital of France?"]
    assert typed(keys, CTRL_R + "othe" + ENTER, history=history)[0] == "other"
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("start", "expected"),
    [("/cop", "/copy"), ("/set te", "/set temp"), ("/format gguf-q4_k_m", "/format gguf-q4_k_m"), ("hello", "hello")],
)
def test_tab_completes(keys: PipeInput, start: str, expected: str) -> None:
    assert typed(keys, start + TAB + ENTER) == [expected]


def test_files_complete(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "folder").mkdir()
    assert list(complete(f"/read {tmp_path}/")) == [f"{tmp_path}/folder/", f"{tmp_path}/notes.txt"]
    assert list(complete(f"/read {tmp_path}/no")) == [f"{tmp_path}/notes.txt"]
    assert list(complete("not a command")) == []


def test_keys_typed_while_a_reply_streams_go_to_the_next_prompt(keys: PipeInput) -> None:
    prompt = TerminalPrompt(complete, None)
    with HeldKeys(prompt.source) as held:
        keys.send_text("next que")
        assert not held.saw_ctrl_c()
        keys.send_text("stion")
        assert not held.saw_ctrl_c()
        keys.send_text(ENTER)
        assert not held.saw_ctrl_c()
        keys.send_text("and more")
        assert not held.saw_ctrl_c()
        keys.send_text("\x03")
        assert held.saw_ctrl_c()
    assert prompt.ask() == "next question"
    keys.send_text(ENTER)
    assert prompt.ask() == "and more"


def test_a_paste_while_a_reply_streams_is_one_message(keys: PipeInput) -> None:
    prompt = TerminalPrompt(complete, None)
    with HeldKeys(prompt.source) as held:
        keys.send_text(PASTE + "one\ntwo" + PASTE_END + ENTER)
        held.saw_ctrl_c()
    assert prompt.ask() == "one\ntwo"


def test_quotes_are_taken_off() -> None:
    assert without_quotes('"""\na\nb\n"""') == "a\nb"
    assert without_quotes('say """x"""') == 'say """x"""'
    assert [is_unfinished(text) for text in ('"""', '"""a', '"""a"""', 'a"""', '""""""')] == [1, 1, 0, 0, 0]
