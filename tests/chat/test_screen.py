"""The chat on a real terminal, by pexpect and pyte: what a person sees, at any moment of it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pyte
import pytest

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
TOY = "toy-llama:gguf-q4_k_m"
_SECONDS = 60


class Screen:
    """A terminal with `localq chat` in it."""

    def __init__(self, arguments: list[str], environment: dict[str, str], columns: int) -> None:
        self.lines = pyte.Screen(columns, 24)
        self._stream = pyte.ByteStream(self.lines)
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "localq", "chat", *arguments],
            env={**os.environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **environment},
            dimensions=(24, columns),
            timeout=_SECONDS,
        )

    def type(self, text: str) -> None:
        self.process.send(text)

    def text(self) -> str:
        """What the screen shows now, also while more comes."""
        deadline = time.monotonic() + 0.1
        try:
            while time.monotonic() < deadline:
                self._stream.feed(self.process.read_nonblocking(65536, timeout=0.05))
        except (pexpect.TIMEOUT, pexpect.EOF):
            pass
        return "\n".join(line.rstrip() for line in self.lines.display).rstrip()

    def wait_for(self, text: str, count: int = 1) -> str:
        deadline = time.monotonic() + _SECONDS
        while (shown := self.text()).count(text) < count:
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{shown}"
        return shown

    def end(self) -> int:
        """Ctrl-D; the exit status."""
        self.wait_for_prompt()
        self.type("\x04")
        self.process.expect(pexpect.EOF)
        self.process.close()
        return int(self.process.exitstatus if self.process.exitstatus is not None else -1)

    def wait_for_prompt(self) -> None:
        deadline = time.monotonic() + _SECONDS
        while not self.text().endswith(">>>"):
            assert time.monotonic() < deadline, self.text()


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    return {"XDG_DATA_HOME": str(tmp_path)}


@pytest.fixture
def screen(data: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Screen]:
    opened = Screen([TOY, *getattr(request, "param", [])], data, 80)
    yield opened
    opened.process.close(force=True)


def test_what_is_typed_before_the_model_is_loaded_is_answered(screen: Screen) -> None:
    screen.wait_for("/help lists the commands")
    screen.type(QUESTION + "\r")
    shown = screen.wait_for(ANSWER)
    assert f">>> {QUESTION}" in shown
    assert screen.end() == 0


def test_ctrl_c_drops_a_line_and_the_chat_goes_on(screen: Screen) -> None:
    screen.wait_for_prompt()
    screen.type("half a quest")
    screen.wait_for("half a quest")
    screen.type("\x03")
    screen.wait_for("(Ctrl-D or /exit leaves)")
    screen.type(QUESTION + "\r")
    screen.wait_for(ANSWER)
    assert screen.end() == 0


ENDLESS = ["--logit-bias", "508=-inf", "--logit-bias", "511=-inf", "-c", "1000", "-n", "900"]
"""Without the toys' end tokens; MLX on a CPU takes seconds for so many tokens."""


def test_ctrl_c_ends_a_reply_which_can_be_continued(data: dict[str, str]) -> None:
    screen = Screen(["toy-llama:mlx-4bit", *ENDLESS], data, 80)
    screen.wait_for_prompt()
    screen.type(QUESTION + "\r")
    screen.wait_for(" the ", count=10)  # of which the chat itself writes three
    screen.type("typed ahead")
    screen.type("\x03")
    screen.wait_for("(stopped; /continue goes on)")
    screen.wait_for(">>> typed ahead")
    screen.type("\x03")
    screen.wait_for_prompt()
    screen.type("/continue\r")
    screen.wait_for("/continue\n")
    screen.type("\x03")
    screen.wait_for("(stopped", count=2)
    screen.wait_for_prompt()
    screen.type("/stats\r")
    screen.wait_for("from the cache")
    assert screen.end() == 0


def test_ctrl_c_typed_with_the_question_stops_the_reply(data: dict[str, str]) -> None:
    screen = Screen(["toy-llama:mlx-4bit", *ENDLESS], data, 80)
    screen.wait_for_prompt()
    screen.type(QUESTION + "\r\x03")
    screen.wait_for("(stopped")
    assert screen.end() == 0


def test_a_killed_chat_goes_on_with_everything_that_was_said(screen: Screen, data: dict[str, str]) -> None:
    screen.wait_for_prompt()
    screen.type(QUESTION + "\r")
    screen.wait_for(ANSWER)
    screen.wait_for_prompt()
    screen.process.kill(signal.SIGKILL)
    resumed = Screen(["--resume"], data, 60)
    resumed.wait_for_prompt()
    resumed.type("/undo\r")
    resumed.wait_for(f"(removed: {QUESTION})")
    assert resumed.end() == 0


def test_the_terminal_is_as_before_afterwards(data: dict[str, str], tmp_path: Path) -> None:
    script = f"{sys.executable} -m localq chat {TOY}; stty -a > {tmp_path}/after"
    before = str(pexpect.run("stty -a", env=dict(os.environ)).decode())
    shell = pexpect.spawn("sh", ["-c", script], env={**os.environ, "TERM": "xterm", **data}, timeout=_SECONDS)
    shell.expect(">>>")
    shell.send("\x04")
    shell.expect(pexpect.EOF)
    after = (tmp_path / "after").read_text().split()
    assert [word for word in before.split() if "echo" in word or "ic" in word or "isig" in word or "flsh" in word] == [
        word for word in after if "echo" in word or "ic" in word or "isig" in word or "flsh" in word
    ]
