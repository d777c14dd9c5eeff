"""Seconds until a chat can be used, and from Enter to the first word: localq chat, llama-cli and mlx_lm.chat by turns.

    python benchmarks/chat.py --gguf MODEL.gguf --llama-cli LLAMA_CLI [--mlx FOLDER] [-r 5]

Each program runs on a terminal of its own (a pseudo-terminal, as pexpect opens it). `prompt` is the time from starting
the program until it shows its prompt, `first word` that from sending Enter until anything of the reply is on the
screen, for a second question of the same conversation: so the model is loaded, and what is computed is the new turn.
`from start` is the time until the first word of the first question, which is typed as soon as there is a prompt.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass

import pexpect

_SECONDS = 600
_QUESTIONS = ("What is the capital of France?", "And what is the capital of Italy?")
_NO_REPLY = re.compile(rb"[^\n]*>>> [^\n]*\n|\(loading[^\n]*\n")
_CODES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|[\x01\x02]|" + "─".encode())


@dataclass(frozen=True)
class Program:
    """A chat, and how its prompt looks."""

    name: str
    command: list[str]
    prompt: bytes


@dataclass(frozen=True)
class Times:
    """Seconds."""

    prompt: float
    from_start: float
    first_word: float


class Terminal:
    """What a program writes, without the codes that move the cursor."""

    def __init__(self, command: list[str], data: str) -> None:
        environment = {**os.environ, "XDG_DATA_HOME": data, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self._seen = b""
        self.process = pexpect.spawn(command[0], command[1:], env=environment, timeout=_SECONDS, dimensions=(50, 120))

    def read(self) -> bytes:
        try:
            return _CODES.sub(b"", self.process.read_nonblocking(65536, timeout=0.01))
        except pexpect.TIMEOUT:
            return b""

    def wait_for(self, text: bytes) -> None:
        while not self._seen.rstrip().endswith(text):
            self._seen += self.read()

    def ask(self, question: str) -> float:
        """Type a question; seconds from Enter to the first letter of the reply."""
        self.process.send(question)
        time.sleep(0.5)  # for the echo
        self.read()
        self._seen = b""
        started = time.perf_counter()
        self.process.send("\r")
        while not re.search(rb"[A-Za-z\xc2-\xf4]", _NO_REPLY.sub(b"", self._seen)):
            self._seen += self.read()
        return time.perf_counter() - started


def measure(program: Program) -> Times:
    with tempfile.TemporaryDirectory() as data:
        started = time.perf_counter()
        terminal = Terminal(program.command, data)
        try:
            terminal.wait_for(program.prompt)
            prompt = time.perf_counter() - started
            terminal.ask(_QUESTIONS[0])
            from_start = time.perf_counter() - started
            terminal.wait_for(program.prompt)
            return Times(prompt, from_start, terminal.ask(_QUESTIONS[1]))
        finally:
            terminal.process.close(force=True)


def programs(given: argparse.Namespace) -> list[Program]:
    limit, context = str(given.tokens), str(given.context_length)
    python = [sys.executable, "-m"]
    found = []
    if given.gguf:
        options = ["-n", limit, "-c", context, "--no-save"]
        found.append(Program("localq chat (gguf)", [*python, "localq", "chat", given.gguf, *options], b">>>"))
        if given.llama_cli:
            options = ["-n", limit, "-c", context, "--temp", "0", "--no-warmup", "--simple-io"]
            found.append(Program("llama-cli", [given.llama_cli, "-m", given.gguf, *options], b"\n>"))
    if given.mlx:
        found.append(
            Program("localq chat (mlx)", [*python, "localq", "chat", given.mlx, "-n", limit, "--no-save"], b">>>")
        )
        found.append(
            Program(
                "mlx_lm.chat",
                [*python, "mlx_lm", "chat", "--model", given.mlx, "-m", limit, "--temp", "0"],
                "›".encode(),
            )
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", help="a .gguf file with a chat template")
    parser.add_argument("--llama-cli", help="llama.cpp's llama-cli")
    parser.add_argument("--mlx", help="an MLX folder")
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("-n", "--tokens", type=int, default=8, help="of each reply")
    parser.add_argument("-c", "--context-length", type=int, default=512)
    given = parser.parse_args()
    known = programs(given)
    times: dict[str, list[Times]] = {program.name: [] for program in known}
    for turn in range(given.repetitions):
        for program in known if turn % 2 == 0 else reversed(known):
            times[program.name].append(measure(program))
            print(f"{turn + 1}/{given.repetitions} {program.name}: {times[program.name][-1]}", file=sys.stderr)
    print("| program | prompt (s) | first word from start (s) | first word after Enter (s) |")
    print("| --- | ---: | ---: | ---: |")
    for name, samples in times.items():
        cells = [_cell([getattr(sample, key) for sample in samples]) for key in ("prompt", "from_start", "first_word")]
        print(f"| {name} | {' | '.join(cells)} |")


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
