"""Runs a trial: a function that opens files with a foreign library, in a child process with a time limit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localq.child_process import python_command
from localq.errors import EngineError, ModelFileError, shown

HINT = "download the files again, or take others of the model"
_LEAST_SECONDS, _BYTES_PER_SECOND = 30, 20_000_000
"""The time that a trial may take; slow disks read faster."""
_MOST_REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tried, with what."""

    path: Path
    """The file or folder, for people."""
    engine: str
    """For people: `llama.cpp`."""
    module: str
    """Its function `main` takes the seconds that it has and `arguments`."""
    arguments: Sequence[str]
    file_bytes: int

    def run(self) -> str:
        """What the library says as it ends the child process; empty where it does not end it.

        Raises ModelFileError for a child that does not come to an end, EngineError for one that fails otherwise.
        """
        seconds = _LEAST_SECONDS + self.file_bytes // _BYTES_PER_SECOND
        status, said = self._run(seconds)
        if status == -signal.SIGALRM:
            raise ModelFileError(
                f"{self.path} can't be opened: {self.engine} does not come to an end within {seconds} seconds", HINT
            )
        if status == -signal.SIGKILL:
            raise EngineError(f"the process that tried {self.path} was killed", "perhaps memory ran out")
        if status > 0:
            raise EngineError(f"{self.path} could not be tried: {shown(_last_line(said), _MOST_REASON_CHARACTERS)}")
        return "" if status == 0 else f"{signal.Signals(-status).name}: {_one_line(said)}"

    def _run(self, seconds: int) -> tuple[int, str]:
        try:
            child = subprocess.run(
                python_command(self.module, "main", str(seconds), *self.arguments),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # which would start a debugger
                timeout=2 * seconds,  # the child ends itself before
                start_new_session=True,  # Ctrl-C in the terminal goes to localq alone, which ends it
            )
        except subprocess.TimeoutExpired:
            return -signal.SIGALRM, ""
        except (OSError, ValueError) as error:
            raise EngineError(f"no process can be started to try {self.path}: {error}") from error
        return child.returncode, child.stderr.decode(errors="replace")


def _one_line(said: str) -> str:
    """An assertion of ggml, an exception of C++, or the last error."""
    causes = re.findall(r"^(?:.*/)?([^/\s]+:\d+: .*)$|what\(\): +(.*)$", said, re.MULTILINE)
    line = next((one or other for one, other in reversed(causes)), "") or _last_line(said)
    return shown(line, _MOST_REASON_CHARACTERS)


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else "it gives no reason"
