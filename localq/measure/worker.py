"""A process of its own for one form: from the parent's side `WorkerProcess`, in the child `main`.

Load time and peak memory are then the form's own. The child opens the form and runs functions of localq with its
model: a request per line on standard input, an answer per line on standard output, both JSON. It ends with its input.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from localq.errors import EngineError, LocalqError
from localq.hardware import peak_memory_bytes
from localq.model import Model, open_form, open_gguf_file
from localq.options import LoadOptions

if TYPE_CHECKING:
    from localq.measure.forms import Form

_PROGRAM = """
import sys
if sys.argv[1] not in sys.path:  # else localq is installed, and other packages lie in the same folder
    sys.path.insert(0, sys.argv[1])
from localq.measure.worker import main
main()
"""
_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Step:
    """How far a measurement is: what begins now."""

    part: str
    """The larger part that it lies in: `repetition 2 of 10`, or a form's name."""
    what: str
    """`toy-phi:mlx-4bit, tg128`, or `window 3 of 16`."""
    number: int
    """From 1 on."""
    of: int


OnStep = Callable[[Step], None]


class Loaded(NamedTuple):
    """What is known of a form once it is open."""

    load_seconds: float
    vocabulary_size: int


class WorkerProcess(AbstractContextManager["WorkerProcess"]):
    """A fresh Python for one form. A context manager, whose end is the process's end."""

    def __init__(self, form: Form, options: LoadOptions, files: Sequence[int] = ()) -> None:
        """`files` are open descriptors that the process may use as well."""
        self.form = form
        self.peak_memory_bytes = 0
        """Of the process, as it was at the last answer."""
        self._options = options
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self._process = subprocess.Popen(
            # -P: no module of the current folder
            [sys.executable, "-P", "-c", _PROGRAM, str(Path(__file__).parents[2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            encoding="utf-8",
            # Ctrl-C in the terminal goes to localq alone, which ends its workers.
            start_new_session=True,
            pass_fds=files,
        )

    def load(self) -> Loaded:
        """Open the form. Raises as `run`."""
        return Loaded(*self._request(path=str(self.form.path), options=asdict(self._options)))

    def run(
        self,
        function: Callable[Concatenate[Model, _Arguments], _Answer],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Answer:
        """Run a function of a module with the open model, and wait. Arguments and answer are JSON values.

        Raises LocalqError with the function's own message and hint, EngineError when the process ended.
        """
        name = f"{function.__module__}:{function.__name__}"
        answer: _Answer = self._request(function=name, args=args, kwargs=kwargs)
        return answer

    def _request(self, **request: object) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None  # both are pipes
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            raise self._death()
        reply = json.loads(line)
        if "error" in reply:
            raise LocalqError(f"{self.form.name}: {reply['error']}", reply["hint"])
        self.peak_memory_bytes = reply["peak_memory_bytes"]
        return reply["answer"]

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        with self._errors, suppress(BrokenPipeError):  # of a request that was never read
            self._process.__exit__(None, None, None)  # closes the pipes and waits

    def _death(self) -> EngineError:
        status = self._process.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", errors="replace").strip()
        reason = f": {said.splitlines()[-1]}" if said else ""
        hint = "perhaps memory ran out: measure fewer or smaller forms at once" if status == -signal.SIGKILL else ""
        return EngineError(f"the process that measured {self.form.name} {how}{reason}", hint)


def main() -> None:
    """The child: answer until the input ends."""
    model: Model | None = None

    def answer(request: Mapping[str, Any]) -> Any:
        nonlocal model
        if "path" in request:
            path, options = Path(request["path"]), LoadOptions(**request["options"])
            model = open_gguf_file(path, options) if path.is_file() else open_form(path, options)
            return Loaded(model.load_seconds, model.engine.vocabulary_size)
        module, _, name = request["function"].partition(":")
        return getattr(import_module(module), name)(model, *request["args"], **request["kwargs"])

    # What a library writes to standard output goes to standard error: only answers go to the parent.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            try:
                reply = {"answer": answer(json.loads(line)), "peak_memory_bytes": peak_memory_bytes()}
            except LocalqError as error:
                reply = {"error": error.message, "hint": error.hint}
            answers.write(json.dumps(reply) + "\n")
            answers.flush()
