"""`with captured_llama_log() as log:` keeps llama.cpp quiet and collects what it says.

`log` is a list of text pieces, in order, as llama.cpp hands them over. A line may come in several pieces;
`"".join(log)` is the text. Captures may be nested: an outer one sees what an inner one sees. Several threads
may capture at once: each collects what its own thread logs, and what comes from a thread that captures
nothing itself (a worker of llama.cpp). When the last capture ends, the callback that was there before,
usually llama_cpp's own, is put back.

Knows nothing of what the lines mean.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any


@dataclass(eq=False, slots=True)
class _Capture:
    thread: int
    log: list[str] = field(default_factory=list)


# llama.cpp has one log callback for the whole process, so what it feeds is one per process as well.
_lock = threading.RLock()
_open_captures: list[_Capture] = []
_previous_callback: list[tuple[Any, ctypes.c_void_p]] = []


@contextmanager
def captured_llama_log() -> Iterator[list[str]]:
    """Collect llama.cpp's log instead of letting it reach stderr."""
    capture = _Capture(threading.get_ident())
    with _lock:
        if not _open_captures:
            _previous_callback.append(_current_callback())
            _set_callback(_collector(), ctypes.c_void_p())
        _open_captures.append(capture)
    try:
        yield capture.log
    finally:
        with _lock:
            _open_captures.remove(capture)
            if not _open_captures:
                _set_callback(*_previous_callback.pop())


@cache
def _collector() -> Any:
    # Cached for the life of the process: llama.cpp keeps the bare C pointer, so it must never be freed.
    import llama_cpp

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
    def collect(_level: int, text: bytes, _user_data: object) -> None:
        piece = text.decode("utf-8", errors="replace")
        thread = threading.get_ident()
        with _lock:
            own = [capture for capture in _open_captures if capture.thread == thread]
            for capture in own or _open_captures:
                capture.log.append(piece)

    return collect


def _current_callback() -> tuple[Any, ctypes.c_void_p]:
    import llama_cpp

    callback, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(user_data))
    return callback, user_data


def _set_callback(callback: Any, user_data: ctypes.c_void_p) -> None:
    import llama_cpp

    llama_cpp.llama_log_set(callback, user_data)
