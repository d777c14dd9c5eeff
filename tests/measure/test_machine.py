from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

import localq
from localq import hardware
from localq.measure import machine as machine_module
from localq.measure.machine import describe_machine


def test_a_machine_says_its_cores_memory_and_versions() -> None:
    machine = describe_machine()
    assert machine.cpu
    assert 1 <= machine.physical_cores <= machine.logical_cores
    assert machine.memory_bytes == psutil.virtual_memory().total
    assert 0 <= machine.busy_cores <= machine.logical_cores
    assert machine.busy == (machine.busy_cores > machine.physical_cores / 2)
    assert machine.versions["localq"] == localq.__version__
    assert machine.versions["llama-cpp-python"] == version("llama-cpp-python")


@pytest.mark.skipif(sys.platform == "darwin", reason="there is no /proc that could be missing")
@pytest.mark.parametrize("content", [None, "processor\t: 0\n"])
def test_a_sandbox_without_proc_still_has_a_cpu(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "proc"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(machine_module, "_CPU_INFORMATION", file)
    assert describe_machine().cpu
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "")
    assert describe_machine().cpu == "unknown"


def test_where_physical_cores_are_not_known_the_logical_ones_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 6 if logical else None)
    assert describe_machine().physical_cores == 6


@pytest.mark.parametrize("reader", ["_read_by_cores", "_read_by_gpu"])
def test_the_bandwidth_is_bytes_over_the_fastest_round(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reader == "_read_by_gpu":  # which MLX does on a CPU as well
        pytest.importorskip("mlx")
    durations = [2.0, 0.5, 4.0] + [1.0] * (hardware._ROUNDS - 3)
    times = iter([time for start, seconds in enumerate(durations) for time in (10.0 * start, 10.0 * start + seconds)])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    assert getattr(hardware, reader)() == hardware._BYTES_READ / 0.5


@pytest.mark.parametrize(("platform", "on_gpu"), [("linux", True), ("darwin", True), ("darwin", False)])
def test_on_a_mac_the_gpu_reads(platform: str, on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlx_lm")
    monkeypatch.setattr(hardware, "has_metal", lambda: platform == "darwin")
    monkeypatch.setattr(hardware, "mlx_runs_on_gpu", lambda: on_gpu)
    monkeypatch.setattr(hardware, "_read_by_gpu", lambda: 2.0)
    monkeypatch.setattr(hardware, "_read_by_cores", lambda: 1.0)
    assert hardware.memory_bandwidth_bytes_per_second() == (2.0 if platform == "darwin" and on_gpu else 1.0)
