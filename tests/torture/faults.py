"""Run a function in a process in which chosen system calls fail, kill, or are recorded; see faults.c. Linux only."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localq.errors import LocalqError

SOURCE = Path(__file__).with_name("faults.c")
KILL_BEFORE, KILL_AFTER = -1, -2
_UNEXPECTED = 70


@dataclass(frozen=True)
class Ended:
    """How a child process ended."""

    status: int
    """0; 1 where an error of localq was raised; negative where a signal ended it; else unexpected."""
    calls: int
    said: str


def is_loaded() -> bool:
    """Whether this process runs with faults.c."""
    return hasattr(ctypes.CDLL(None), "torture_arm")


def library(folder: Path) -> Path:
    """Compile faults.c. Several processes may do so at the same time: the file appears whole."""
    built = folder / f"faults-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]}.so"
    if not built.exists():
        own = built.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", own, SOURCE, "-ldl", "-lpthread"], check=True)
        own.replace(built)
    return built


def run_again_with_faults(module: str) -> int:
    """Run this program in a process with faults.c loaded; returns its status."""
    environment = {"LD_PRELOAD": str(library(Path(tempfile.gettempdir()))), "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    return subprocess.run(command, check=False, env={**os.environ, **environment}).returncode


def start(act: Callable[[], object], folder: Path, at: int = -1, action: int = 0, record: Path | None = None) -> int:
    """Fork a process that runs `act`, with an action at call number `at` under `folder`; returns its id.

    What it says is in `folder`.said. `action` is the errno of a failure, KILL_BEFORE or KILL_AFTER.
    """
    child = os.fork()
    if child:
        return child
    status, said = _UNEXPECTED, ""
    shim = ctypes.CDLL(None)
    try:
        with _said(folder).open("w", encoding="utf-8") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        file = -1 if record is None else os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        shim.torture_arm(os.fsencode(folder), ctypes.c_long(at), action, file)
        act()
        status = 0
    except LocalqError as error:
        status, said = 1, f"{type(error).__name__}: {error}"
    except BaseException:
        said = traceback.format_exc()
    calls = shim.torture_count()
    shim.torture_arm(b"", ctypes.c_long(-1), 0, -1)
    _said(folder).write_text(f"{calls}\n{said}", encoding="utf-8")
    os._exit(status)


def end(child: int, folder: Path) -> Ended:
    """Wait for a process of `start`."""
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    head, _, said = _said(folder).read_text(encoding="utf-8").partition("\n")
    return Ended(status, int(head) if head.isdecimal() else 0, said)


def run(act: Callable[[], object], folder: Path, at: int = -1, action: int = 0, record: Path | None = None) -> Ended:
    """`start` and `end`."""
    return end(start(act, folder, at, action, record), folder)


def kill(child: int) -> None:
    """End a process of `start` at once."""
    os.kill(child, signal.SIGKILL)


def _said(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.said")
