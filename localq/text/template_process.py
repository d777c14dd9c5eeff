"""The process that renders chat templates, seen from the one that asks: started at the first rendering, then kept.

One rendering takes 0.2 ms longer than it would here. The process ends with this one.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from localq.child_process import python_command
from localq.errors import ChatTemplateError

MOST_SECONDS = 1.5
"""Of one rendering."""
MOST_MEMORY_BYTES = 256 << 20
"""Of one rendering, more than the process takes before it."""

_START_SECONDS, _LOOK_SECONDS = 60.0, 0.05
_TOO_LONG = f"it takes longer than {MOST_SECONDS:g} seconds"
_TOO_LARGE = f"it needs more than {MOST_MEMORY_BYTES >> 20} MiB of memory"


class TemplateProcess:
    """Renders one template after the other; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._owner = 0
        self._memory_bytes = 0
        atexit.register(self.close)

    def render(self, source: str, context: Mapping[str, Any]) -> tuple[str, str]:
        """A kind of answer and its text; see `localq.text.template_rendering.main`.

        Raises ChatTemplateError where the process can't be started.
        """
        request = pickle.dumps((source, context))
        with self._lock:
            try:
                return self._answer(request)
            except BaseException:  # also after Ctrl-C: an answer may still come
                self.close()
                raise

    def close(self) -> None:
        """End the process; the next rendering starts another."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()

    def _answer(self, request: bytes) -> tuple[str, str]:
        connection = self._started()
        try:
            connection.send_bytes(request)
            failure = self._wait(connection)
            if failure is None:
                kind, text = json.loads(connection.recv_bytes())
                return kind, text
        except (EOFError, OSError):
            failure = self._end()
        self.close()
        return "failed", failure

    def _wait(self, connection: Connection) -> str | None:
        """Wait for an answer; else why there will be none.

        The process has these limits itself. It does not keep that of memory on macOS, which ignores it.
        """
        import psutil

        deadline = time.monotonic() + 2 * MOST_SECONDS
        while not connection.poll(_LOOK_SECONDS):
            assert self._process is not None
            if time.monotonic() > deadline:
                return _TOO_LONG
            with suppress(psutil.Error):  # it has just ended
                if psutil.Process(self._process.pid).memory_info().rss > self._memory_bytes + MOST_MEMORY_BYTES:
                    return _TOO_LARGE
        return None

    def _end(self) -> str:
        assert self._process is not None
        status = self._process.wait(_START_SECONDS)
        if status == -signal.SIGALRM:
            return _TOO_LONG
        ended = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"it ended the process that renders it ({ended})"

    def _started(self) -> Connection:
        if self._connection is not None and self._owner == os.getpid():
            assert self._process is not None
            if self._process.poll() is None:
                return self._connection
        self.close()
        import psutil

        self._connection, theirs = Pipe()
        self._owner = os.getpid()
        arguments = "localq.text.template_rendering", "main", str(theirs.fileno()), str(MOST_SECONDS)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    python_command(*arguments, str(MOST_MEMORY_BYTES)),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # Ctrl-C in the terminal goes to localq alone
                )
            is_ready = self._connection.poll(_START_SECONDS) and bool(self._connection.recv_bytes())
            self._memory_bytes = psutil.Process(self._process.pid).memory_info().rss
            cause = None if is_ready else "no answer"
        except (OSError, EOFError, psutil.Error) as error:
            cause = str(error) or "it ended"
        if cause is not None:
            raise ChatTemplateError(
                f"the process that renders chat templates can't be started: {cause}",
                "check that there is memory left, and that Python can be run",
            )
        return self._connection


PROCESS = TemplateProcess()
"""One for all models."""
