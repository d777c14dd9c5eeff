"""A worker process seen from the process that started it: questions, answers, and how it ended."""

from __future__ import annotations

import json
import os
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from localq.errors import EngineError, LocalqError


class WorkerProcess:
    """A worker's module in a fresh Python. A context manager, whose end is the process's end."""

    def __init__(self, name: str, module: str = "localq.measure.speed.worker", files: Sequence[int] = ()) -> None:
        """`name` is the form that it measures, for messages; `files` are descriptors that it may use as well."""
        self._name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],  # -P: no module of the current folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(Path(__file__).parents[2]),
            encoding="utf-8",
            # Ctrl-C in the terminal goes to localq alone, which ends its workers.
            start_new_session=True,
            pass_fds=files,
        )

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Send a request and wait for the answer.

        Raises LocalqError with the worker's own message and hint, EngineError when the worker is no more.
        """
        assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
        try:
            self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LocalqError(f"{self._name}: {answer['error']}", answer["hint"])
        return answer

    def close(self) -> None:
        """End the process at once; calling it twice is harmless."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:  # a request that was never read
                continue
        self._process.wait()
        self._errors.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _death(self) -> EngineError:
        status = self._process.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", errors="replace").strip()
        reason = f": {said.splitlines()[-1]}" if said else ""
        hint = "perhaps memory ran out: measure fewer or smaller forms at once" if status == -signal.SIGKILL else ""
        return EngineError(f"the process that measured {self._name} {how}{reason}", hint)


def _environment(package_root: Path) -> dict[str, str]:
    """What the worker inherits. Its Python finds localq in the folder that this one runs from.

    Nothing is added where Python looks there by itself: what stands on PYTHONPATH comes before the standard library,
    and an installed package's folder is full of other packages.
    """
    if str(package_root) in (*site.getsitepackages(), site.getusersitepackages()):
        return dict(os.environ)
    paths = [str(package_root), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
