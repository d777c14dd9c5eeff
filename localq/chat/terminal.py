"""The terminal beside the prompt: quiet while libraries load, and its keys held while a reply streams.

Keys that are typed when no prompt is shown are neither echoed nor lost: the next prompt gets them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyPress

_BRACKETED_PASTE_ON, _BRACKETED_PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"


def is_interactive() -> bool:
    """Whether a person types at a terminal that can move its cursor."""
    return sys.stdin.isatty() and os.environ.get("TERM") not in (None, "", "dumb") and _shown().isatty()


def _shown() -> Any:
    """The stream on which the prompt appears: stdout, or stderr where stdout is piped."""
    return sys.stdout if sys.stdout.isatty() else sys.stderr


@contextmanager
def quiet_terminal() -> Iterator[None]:
    """Keep what is typed for the first prompt, from now on until the `with` block ends.

    Without this the terminal echoes keys while libraries load, and changes pasted text. Ctrl-C works as always.
    """
    try:
        import termios
    except ImportError:  # no such terminals on this system
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    quiet: list[Any] = termios.tcgetattr(descriptor)
    quiet[0] &= ~termios.ICRNL  # else Enter arrives as another key than later
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    quiet[3] |= termios.NOFLSH  # else Ctrl-C throws keys away
    termios.tcsetattr(descriptor, termios.TCSANOW, quiet)
    _tell(_BRACKETED_PASTE_ON)
    try:
        yield
    finally:
        _tell(_BRACKETED_PASTE_OFF)
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


class HeldKeys:
    """Keeps what is typed while a reply streams, for the next prompt; Ctrl-C is seen at once. A context manager."""

    def __init__(self, source: Input | None) -> None:
        """`source` is the prompt's; None where nobody types."""
        self._source = source
        self._keys: list[KeyPress] = []
        self._early: list[KeyPress] = []
        self._mode: Any = None

    def __enter__(self) -> HeldKeys:
        if self._source is not None:
            from prompt_toolkit.input.typeahead import get_typeahead

            self._mode = self._source.raw_mode()
            self._mode.__enter__()
            self._early = get_typeahead(self._source)  # typed behind the Enter that ended the prompt
            _tell(_BRACKETED_PASTE_ON)
        return self

    def __exit__(self, *_: object) -> None:
        if self._source is not None:
            from prompt_toolkit.input.typeahead import store_typeahead

            self.saw_ctrl_c()
            _tell(_BRACKETED_PASTE_OFF)
            self._mode.__exit__()
            store_typeahead(self._source, self._keys)

    def saw_ctrl_c(self) -> bool:
        """Read the keys that were typed since the last time; whether Ctrl-C is among them."""
        if self._source is None:
            return False
        from prompt_toolkit.key_binding import KeyPress
        from prompt_toolkit.keys import Keys

        keys, self._early = self._early, []
        while _has_input(self._source) and (more := self._source.read_keys()):
            keys += more
        found = any(key.key == Keys.ControlC for key in keys)
        keys = [key for key in keys if key.key != Keys.ControlC]
        if keys and keys[-1].key == Keys.ControlM:  # typed: what is pasted without marks goes on behind its line ends
            keys[-1] = KeyPress(Keys.F24, keys[-1].data)
        self._keys += keys
        return found


def _has_input(source: Input) -> bool:
    import select

    return not source.closed and bool(select.select([source.fileno()], [], [], 0)[0])


def _tell(code: str) -> None:
    stream = _shown()
    stream.write(code)
    stream.flush()


def copy(text: str) -> str:
    """Put a text on the clipboard. Returns how, for people; empty where there is no way.

    By the system's own tool; over SSH, or where there is none, by the terminal (OSC 52), which does not confirm it.
    """
    import base64
    import shutil
    import subprocess

    tools = [["pbcopy"], ["wl-copy"], ["xclip", "-selection", "clipboard"], ["xsel", "-ib"], ["clip.exe"]]
    if not os.environ.get("SSH_CONNECTION"):
        for tool in tools:
            if shutil.which(tool[0]):
                done = subprocess.run(tool, input=text.encode(), capture_output=True, check=False)
                if done.returncode == 0:
                    return "copied"
    encoded = base64.b64encode(text.encode()).decode()
    if len(encoded) > _MOST_OSC_52_BYTES or not _shown().isatty():
        return ""
    _tell(f"\x1b]52;c;{encoded}\x07")
    return "sent to the terminal's clipboard"


_MOST_OSC_52_BYTES = 75_000
"""Terminals drop longer ones."""
