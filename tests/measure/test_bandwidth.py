"""The memory's speed, as far as it can be tested without asserting times."""

from __future__ import annotations

import sys

import pytest

from localq.measure import bandwidth


@pytest.mark.parametrize("reader", ["_read_by_cores", "_read_by_gpu"])
def test_the_bandwidth_is_bytes_over_the_fastest_round(reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reader == "_read_by_gpu":  # which MLX does on a CPU as well
        pytest.importorskip("mlx")
    durations = [2.0, 0.5, 4.0] + [1.0] * (bandwidth._ROUNDS - 3)
    times = iter([time for start, seconds in enumerate(durations) for time in (10.0 * start, 10.0 * start + seconds)])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    monkeypatch.setattr(bandwidth, "_BYTES", 1 << 20)
    assert getattr(bandwidth, reader)() == (1 << 20) / 0.5


@pytest.mark.parametrize(("platform", "on_gpu"), [("linux", True), ("darwin", True), ("darwin", False)])
def test_on_a_mac_the_gpu_reads(platform: str, on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlx_lm")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(bandwidth, "mlx_runs_on_gpu", lambda: on_gpu)
    monkeypatch.setattr(bandwidth, "_read_by_gpu", lambda: 2.0)
    monkeypatch.setattr(bandwidth, "_read_by_cores", lambda: 1.0)
    assert bandwidth.memory_bandwidth_bytes_per_second() == (2.0 if platform == "darwin" and on_gpu else 1.0)
