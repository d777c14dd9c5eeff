"""A headless Chromium, driven by its own protocol (DevTools) over a pipe: no package is needed for it."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
PIPES = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
for pipe, number in zip(pipes, (3, 4)):  # Chromium reads from descriptor 3 and writes to 4
    os.dup2(pipe, number)
os.execvp(sys.argv[3], sys.argv[3:])
"""
SECONDS = 60
"""How long something may take to appear on a busy machine."""


class Browser:
    """One tab."""

    def __init__(self, folder: Path, width: int = 1280, height: int = 900) -> None:
        assert CHROMIUM is not None
        reads, self._out = os.pipe()
        self._in, writes = os.pipe()
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        command = [CHROMIUM, *FLAGS, *sandbox, f"--user-data-dir={folder}", "about:blank"]
        wrapped = [sys.executable, "-c", PIPES, str(reads), str(writes), *command]
        self._child = subprocess.Popen(wrapped, pass_fds=(reads, writes), stderr=subprocess.DEVNULL)
        os.close(reads)
        os.close(writes)
        self._number, self._rest, self._session = 0, b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for name in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{name}.enable")
        self.resize(width, height)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._out)  # ends it
        os.close(self._in)
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def call(self, method: str, **parameters: Any) -> Any:
        """The answer to a command; events that come before it are kept."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        command = {"id": self._number, "method": method, "params": parameters, **session}
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            while b"\0" not in self._rest:
                ready, _, _ = select.select([self._in], [], [], 2 * SECONDS)
                assert ready, f"no answer to {method}"
                piece = os.read(self._in, 1 << 20)
                assert piece, "Chromium ended"
                self._rest += piece
            line, _, self._rest = self._rest.partition(b"\0")
            message = json.loads(line)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def run(self, script: str) -> Any:
        """The value of a piece of JavaScript; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Until an expression is true."""
        return self.run(f"""new Promise((resolve, reject) => {{
            const end = Date.now() + {SECONDS * 1000};
            const look = () => {{
                const value = {condition};
                if (value) resolve(value);
                else if (Date.now() > end) reject(new Error(document.body.innerText));
                else setTimeout(look, 20);
            }};
            look();
        }})""")

    def open(self, url: str) -> None:
        """Load a page and wait for it."""
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({url!r}) && document.readyState === 'complete'")

    def resize(self, width: int, height: int = 900) -> None:
        """Another size of the window."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, shift: bool = False) -> None:
        """A key, down and up."""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9}
        text = {"text": "\r"} if key == "Enter" else {}
        given = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **given, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **given)
