"""llama.cpp is made to log by asking it for a model file that is not there."""

from __future__ import annotations

import ctypes
import threading

import llama_cpp
import pytest

from localq.llama_log import captured_llama_log


def make_it_log(name: str) -> None:
    parameters = llama_cpp.llama_model_default_params()
    assert not llama_cpp.llama_model_load_from_file(f"/absent/{name}.gguf".encode(), parameters)


def current_callback() -> int | None:
    callback, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(user_data))
    return ctypes.cast(callback, ctypes.c_void_p).value


def test_the_log_is_collected_and_not_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_llama_log() as log:
        make_it_log("one")
    assert "/absent/one.gguf" in "".join(log)
    assert capfd.readouterr() == ("", "")


def test_the_callback_that_was_there_before_is_put_back(capfd: pytest.CaptureFixture[str]) -> None:
    before = current_callback()
    with pytest.raises(ZeroDivisionError), captured_llama_log() as log:
        assert current_callback() != before
        raise ZeroDivisionError
    assert current_callback() == before
    make_it_log("after")
    assert log == []
    assert "/absent/after.gguf" in capfd.readouterr().err


def test_an_outer_capture_sees_what_an_inner_one_sees() -> None:
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
