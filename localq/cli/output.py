"""Where the command line writes: answers and data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any

from localq.errors import LocalqError


def emit(text: str, end: str = "\n") -> None:
    """Write answer or data to stdout, at once. Raises LocalqError where that fails, BrokenPipeError unchanged."""
    try:
        sys.stdout.write(text + end)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        write_no_more()
        raise LocalqError(f"can't write to standard output: {error.strerror}") from error


def write_no_more() -> None:
    """Discard further output to stdout: Python would fail again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def emit_json(value: Any) -> None:
    """Write one JSON value to stdout."""
    emit(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Write a line for the user to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def output_width() -> int | None:
    """Columns that tables on stdout may have: of the terminal, or COLUMNS; None where there is no limit."""
    if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal():
        return shutil.get_terminal_size().columns
    return None


def stderr_is_terminal() -> bool:
    """Whether progress bars make sense."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
