"""`with captured_llama_log() as log:` keeps llama.cpp quiet and collects what it says.

`log` is a list of text pieces, in order, as llama.cpp hands them over. A line may come in several pieces;
`"".join(log)` is the text. Captures may be nested: an outer one sees what an inner one sees. Several threads
may capture at once: each collects what its own thread logs, and what comes from a thread that captures
nothing itself (a worker of llama.cpp). When the last capture ends, the callback that was there before,
usually llama_cpp's own, is put back.

A Ctrl-C while llama.cpp works reaches Python when llama.cpp logs next, inside the callback. ctypes can't let it
through llama.cpp, so it is raised where the capture ends.

Knows nothing of what the lines mean.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any


@dataclass(eq=False, slots=True)
class _Capture:
    thread: int
    log: list[str] = field(default_factory=list)
    raised: BaseException | None = None


@dataclass(frozen=True, slots=True)
class _Before:
    """What the first capture took the place of."""

    callback: Any
    user_data: ctypes.c_void_p
    unraisable_hook: Callable[[sys.UnraisableHookArgs], object]


# llama.cpp has one log callback for the whole process, so what it feeds is one per process as well.
_lock = threading.RLock()
_open_captures: list[_Capture] = []
_before: list[_Before] = []


@contextmanager
def captured_llama_log() -> Iterator[list[str]]:
    """Collect llama.cpp's log instead of letting it reach stderr. Raises at the end what the callback raised."""
    capture = _Capture(threading.get_ident())
    with _lock:
        if not _open_captures:
            _before.append(_Before(*_current_callback(), sys.unraisablehook))
            _set_callback(_collector(), ctypes.c_void_p())
            sys.unraisablehook = _keep_what_ctypes_drops
        _open_captures.append(capture)
    try:
        yield capture.log
    finally:
        with _lock:
            _open_captures.remove(capture)
            if not _open_captures:
                before = _before.pop()
                _set_callback(before.callback, before.user_data)
                if sys.unraisablehook is _keep_what_ctypes_drops:
                    sys.unraisablehook = before.unraisable_hook
        if capture.raised is not None:
            raise capture.raised


@cache
def _collector() -> Any:
    # Cached for the life of the process: llama.cpp keeps the bare C pointer, so it must never be freed.
    import llama_cpp

    return llama_cpp.llama_log_callback(_collect)


def _collect(_level: int, text: bytes, _user_data: object) -> None:
    piece = text.decode("utf-8", errors="replace")
    with _lock:
        for capture in _captures_fed_here():
            capture.log.append(piece)


def _captures_fed_here() -> list[_Capture]:
    """The captures that get what this thread logs."""
    thread = threading.get_ident()
    return [capture for capture in _open_captures if capture.thread == thread] or list(_open_captures)


def _keep_what_ctypes_drops(unraisable: sys.UnraisableHookArgs) -> None:
    """`sys.unraisablehook` during captures: what `_collect` raised is kept for the innermost capture.

    A `try` in `_collect` would not do: Python runs a signal's handler as a function begins, before its first
    statement.
    """
    trace, error = unraisable.exc_traceback, unraisable.exc_value
    with _lock:
        captures = _captures_fed_here()
        if captures and error and trace and trace.tb_frame.f_code is _collect.__code__:
            captures[-1].raised = captures[-1].raised or error
            return
        hook = _before[-1].unraisable_hook if _before else sys.__unraisablehook__
    hook(unraisable)


def _current_callback() -> tuple[Any, ctypes.c_void_p]:
    import llama_cpp

    callback, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(user_data))
    return callback, user_data


def _set_callback(callback: Any, user_data: ctypes.c_void_p) -> None:
    import llama_cpp

    llama_cpp.llama_log_set(callback, user_data)
