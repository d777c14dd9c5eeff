"""`with captured_llama_log() as log:` keeps llama.cpp quiet and collects its log.

`log` is a list of pieces of text, in order, as llama.cpp gives them. A line may come in several pieces;
`"".join(log)` is the text. Captures may be nested: an outer one gets what an inner one gets. Several threads
may capture at once: each gets what its own thread logs, and what threads without a capture log (workers of
llama.cpp). When the last capture ends, the earlier callback, usually llama_cpp's own, is restored.

After Ctrl-C, Python raises KeyboardInterrupt when llama.cpp logs next, inside the callback. ctypes drops exceptions of
a callback, so it is raised again where the capture ends.
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
    """What the first capture replaced."""

    callback: Any
    user_data: ctypes.c_void_p
    unraisable_hook: Callable[[sys.UnraisableHookArgs], object]


# One per process, as llama.cpp's log callback.
_lock = threading.RLock()
_open_captures: list[_Capture] = []
_before: list[_Before] = []


@contextmanager
def captured_llama_log() -> Iterator[list[str]]:
    """Collect llama.cpp's log instead of writing it to stderr. Raises at the end what the callback raised."""
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
    # Cached as long as the process runs: llama.cpp keeps the C pointer, so it must never be freed.
    import llama_cpp

    return llama_cpp.llama_log_callback(_collect)


def _collect(_level: int, text: bytes, _user_data: object) -> None:
    piece = text.decode("utf-8", errors="replace")
    with _lock:
        for capture in _captures_fed_here():
            capture.log.append(piece)


def _captures_fed_here() -> list[_Capture]:
    """The captures that get the log of this thread."""
    thread = threading.get_ident()
    return [capture for capture in _open_captures if capture.thread == thread] or list(_open_captures)


def _keep_what_ctypes_drops(unraisable: sys.UnraisableHookArgs) -> None:
    """`sys.unraisablehook` during captures: what `_collect` raised is kept for the innermost capture.

    A `try` in `_collect` is not enough: Python may run a signal's handler when a function begins, before its first
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
