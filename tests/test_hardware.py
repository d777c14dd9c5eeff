from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from localq import hardware
from localq.conversion.pieces import WorkerPool
from localq.hardware import available_cores, available_logical_cores, peak_memory_bytes

_BALLAST_BYTES = 256 << 20
_FREED_BALLAST = f"""
from localq.hardware import peak_memory_bytes
before = peak_memory_bytes()
ballast = b"x" * {_BALLAST_BYTES}
del ballast
print(before, peak_memory_bytes())
"""


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which four are physical; the process may run on all."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cores")
def test_a_process_that_may_run_anywhere_has_all_cores() -> None:
    assert (available_cores(), available_logical_cores()) == (4, 8)


@pytest.mark.usefixtures("eight_cores")
def test_cores_that_the_process_may_not_run_on_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {2, 5})
    assert (available_cores(), available_logical_cores()) == (2, 2)
    pool = WorkerPool()
    pool.close()
    assert pool.threads == 3  # one waits for the disk


@pytest.mark.usefixtures("eight_cores")
def test_where_nothing_limits_a_process_the_system_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert (available_cores(), available_logical_cores()) == (4, 8)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert (available_cores(), available_logical_cores()) == (1, 1)


@pytest.mark.usefixtures("eight_cores")
def test_where_physical_cores_are_not_known_the_logical_ones_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 8 if logical else None)
    assert available_cores() == 8


def _before_and_after_ballast() -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", _FREED_BALLAST], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    return before, after


def test_the_peak_counts_memory_that_was_given_back() -> None:
    before, after = _before_and_after_ballast()
    # The kernel counts resident pages in batches, so that a few MB may be missing.
    assert 0.95 < (after - before) / _BALLAST_BYTES < 1.05


def test_the_peak_does_not_count_the_parents_memory() -> None:
    ballast = b"x" * _BALLAST_BYTES
    before, _ = _before_and_after_ballast()
    assert before < len(ballast)


def test_the_peak_is_never_below_what_is_resident_now() -> None:
    resident = psutil.Process().memory_info().rss
    assert peak_memory_bytes() >= resident * 0.99  # Linux counts what is resident in per-thread pieces


@pytest.mark.skipif(sys.platform == "darwin", reason="there is no /proc that could be missing")
@pytest.mark.parametrize("content", [None, "Name:\tpython\nVmRSS:\t 10 kB\n"])
def test_a_sandbox_without_proc_still_has_a_peak(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "status"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(hardware, "_STATUS", file)
    assert peak_memory_bytes() >= psutil.Process().memory_info().rss * 0.99
