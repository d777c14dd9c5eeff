from __future__ import annotations

import os

import psutil
import pytest

from localq.conversion.pieces import WorkerPool
from localq.hardware import available_cores, available_logical_cores


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
