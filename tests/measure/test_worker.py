"""A process of its own for a form: what it runs, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from localq.errors import EngineError, LocalqError, OptionError
from localq.measure.forms import Form
from localq.measure.worker import _PROGRAM, WorkerProcess
from localq.model import Model
from localq.options import LoadOptions

_OPTIONS = LoadOptions(context_length=128)


def double(model: Model, number: int, **named: Any) -> dict[str, Any]:
    return {"double": 2 * number, "context": model.context_length, **named}


def shout(model: Model) -> int:
    return os.write(1, b"a library writes this")


def fail(model: Model, what: str) -> None:
    raise OptionError(f"no {what}", "take another")


def leave(model: Model) -> None:
    raise RuntimeError("no such luck")


def take_memory(model: Model, nbytes: int) -> None:
    b"x" * nbytes


def test_functions_run_in_another_process_with_the_open_model(forms: list[Form]) -> None:
    for form in forms:
        with WorkerProcess(form, _OPTIONS) as worker:
            loaded = worker.load()
            assert loaded.load_seconds > 0 and loaded.vocabulary_size == 768
            assert worker.run(double, 4, name="é") == {"double": 8, "context": 128, "name": "é"}
            assert worker.run(shout) == len("a library writes this")  # which disturbs no answer
            assert worker.run(double, 1)["double"] == 2


def test_the_peak_memory_is_that_of_the_process(forms: list[Form]) -> None:
    with WorkerProcess(forms[1], _OPTIONS) as worker:
        worker.load()
        before = worker.peak_memory_bytes
        worker.run(take_memory, 200_000_000)
        assert before > forms[1].artifact_bytes
        assert worker.peak_memory_bytes == pytest.approx(before + 200_000_000, rel=0.1)


def test_an_error_comes_over_with_its_form_and_hint(forms: list[Form]) -> None:
    with WorkerProcess(forms[1], _OPTIONS) as worker:
        worker.load()
        with pytest.raises(LocalqError, match=r"^local/tiny:gguf-q4_k_m: no luck$") as caught:
            worker.run(fail, "luck")
        assert caught.value.hint == "take another"
        assert worker.run(double, 3)["double"] == 6


def test_a_process_that_crashes_is_reported_with_its_last_words(forms: list[Form]) -> None:
    with WorkerProcess(forms[1], _OPTIONS) as worker:
        worker.load()
        with pytest.raises(EngineError, match=r"gguf-q4_k_m ended with exit status 1: RuntimeError: no such luck"):
            worker.run(leave)


def test_a_process_that_is_killed_is_reported_with_its_form(forms: list[Form]) -> None:
    with WorkerProcess(forms[1], _OPTIONS) as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"local/tiny:gguf-q4_k_m was killed by SIGKILL") as caught:
            worker.load()
        assert "memory" in caught.value.hint


def test_a_process_does_not_need_localq_to_be_installed(
    forms: list[Form], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with WorkerProcess(forms[1], _OPTIONS) as worker:
        assert worker.load().vocabulary_size == 768


def test_a_folder_of_installed_packages_is_not_put_before_the_standard_library(tmp_path: Path) -> None:
    program = _PROGRAM.partition("from localq")[0] + "print(sys.path.index(sys.argv[1]))"
    for folder, is_first in ((str(tmp_path), True), (sysconfig.get_path("purelib"), False)):
        command = [sys.executable, "-P", "-c", program, folder]
        place = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert (int(place) == 0) == is_first
