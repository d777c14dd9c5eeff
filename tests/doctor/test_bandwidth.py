"""The memory's speed, as far as it can be tested without asserting times."""

from __future__ import annotations

import pytest

from localq.doctor import bandwidth


def test_the_bandwidth_is_bytes_over_the_fastest_round(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 2.0, 10.0, 10.5, 20.0, 24.0, 30.0, 31.0, 40.0, 41.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    monkeypatch.setattr(bandwidth, "_BYTES", 1 << 20)
    assert bandwidth.memory_bandwidth_bytes_per_second() == (1 << 20) / 0.5
