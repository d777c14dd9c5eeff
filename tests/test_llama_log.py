"""llama.cpp logs because it is given a model file that does not exist."""

from __future__ import annotations

import ctypes
import operator
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import llama_cpp
import pytest

from localq.llama_log import captured_llama_log


def make_it_log(name: str) -> None:
    parameters = llama_cpp.llama_model_default_params()
    assert not llama_cpp.llama_model_load_from_file(f"/absent/{name}.gguf".encode(), parameters)


def make_it_log_after(send_signal: signal.Signals) -> None:
    """As when the signal comes while llama.cpp works: no Python runs between the signal and the log."""
    send = partial(getattr(ctypes.CDLL(None), "raise"), send_signal)
    parameters = llama_cpp.llama_model_default_params()
    log = partial(llama_cpp.llama_model_load_from_file, b"/absent/interrupted.gguf", parameters)
    list(map(operator.call, (send, log)))


@contextmanager
def handled(signal_number: signal.Signals, error: BaseException) -> Iterator[None]:
    def handle(_number: int, _frame: object) -> None:
        raise error

    before = signal.signal(signal_number, handle)
    try:
        yield
    finally:
        signal.signal(signal_number, before)


def current_callback() -> int | None:
    callback, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(user_data))
    return ctypes.cast(callback, ctypes.c_void_p).value


def test_the_log_is_collected_and_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_llama_log() as log:
        make_it_log("one")
    assert "/absent/one.gguf" in "".join(log)
    assert capfd.readouterr() == ("", "")


def test_the_earlier_callback_is_restored(capfd: pytest.CaptureFixture[str]) -> None:
    before = current_callback()
    with pytest.raises(ZeroDivisionError), captured_llama_log() as log:
        assert current_callback() != before
        raise ZeroDivisionError
    assert current_callback() == before
    make_it_log("after")
    assert log == []
    assert "/absent/after.gguf" in capfd.readouterr().err


def test_an_outer_capture_gets_what_an_inner_one_gets() -> None:
    with captured_llama_log() as outer:
        with captured_llama_log() as inner:
            make_it_log("inner")
        make_it_log("outer")
    assert "inner.gguf" in "".join(inner)
    assert "outer.gguf" not in "".join(inner)
    assert "inner.gguf" in "".join(outer)
    assert "outer.gguf" in "".join(outer)


def test_threads_collect_their_own_log() -> None:
    before = current_callback()
    logs: dict[str, str] = {}
    together = threading.Barrier(4)

    def capture(name: str) -> None:
        with captured_llama_log() as log:
            together.wait()
            for _ in range(20):
                make_it_log(name)
            together.wait()
        logs[name] = "".join(log)

    threads = [threading.Thread(target=capture, args=(name,)) for name in ("ape", "bee", "cat", "dog")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(logs) == 4
    for name, log in logs.items():
        assert [other for other in logs if f"{other}.gguf" in log] == [name]
        assert log.count(f"{name}.gguf") % 20 == 0
    assert current_callback() == before


def test_what_a_thread_without_a_capture_logs_is_collected() -> None:
    with captured_llama_log() as log:
        worker = threading.Thread(target=make_it_log, args=("worker",))
        worker.start()
        worker.join()
    assert "worker.gguf" in "".join(log)


def test_a_ctrl_c_while_llama_cpp_logs_is_raised_when_the_capture_ends(capfd: pytest.CaptureFixture[str]) -> None:
    went_on = False
    with pytest.raises(KeyboardInterrupt), captured_llama_log() as log:
        make_it_log_after(signal.SIGINT)
        went_on = True
    assert went_on
    assert log
    assert capfd.readouterr() == ("", "")


def test_what_a_signal_handler_raises_comes_before_an_error_of_the_block() -> None:
    stop = SystemExit(3)
    with handled(signal.SIGTERM, stop), pytest.raises(SystemExit) as caught, captured_llama_log():
        make_it_log_after(signal.SIGTERM)
        raise ZeroDivisionError
    assert caught.value is stop
    assert isinstance(stop.__context__, ZeroDivisionError)


def test_an_interruption_ends_the_innermost_capture() -> None:
    with captured_llama_log() as outer:
        with pytest.raises(KeyboardInterrupt), captured_llama_log():
            make_it_log_after(signal.SIGINT)
        make_it_log("later")
    assert "later.gguf" in "".join(outer)


def test_other_exceptions_that_nobody_can_catch_go_to_the_earlier_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[BaseException | None] = []
    hook = lambda unraisable: seen.append(unraisable.exc_value)  # noqa: E731 (compared by identity below)
    monkeypatch.setattr(sys, "unraisablehook", hook)
    error = ZeroDivisionError()

    @ctypes.CFUNCTYPE(None)
    def fail() -> None:
        raise error

    with captured_llama_log():
        fail()
    assert seen == [error]
    assert sys.unraisablehook is hook
