from __future__ import annotations

import dataclasses
import random
from types import SimpleNamespace

import psutil
import pytest

from localq.measure.machine import describe_machine
from localq.measure.speed import drift as drift_module
from localq.measure.speed.drift import (
    ClockWatch,
    busy_warnings,
    clock_warnings,
    drift_warnings,
    few_warnings,
    find_drift,
    spread_warnings,
    thermal_warnings,
)
from localq.measure.speed.intervals import summarize


def _series(draw: random.Random, change: float, noise: float, repetitions: int = 10) -> list[list[float]]:
    """Two forms in two tests, whose rates change by so much from the first repetition to the last."""
    steps = [1 + change * step / (repetitions - 1) for step in range(repetitions)]
    return [[rate * step * draw.gauss(1, noise) for step in steps] for rate in (4000, 90, 1300, 12)]


@pytest.mark.parametrize("change", [-0.08, 0.08])
def test_a_trend_is_found_with_its_size(change: float) -> None:
    draw = random.Random(1)
    found = [find_drift(_series(draw, change, 0.02)) for _ in range(20)]
    sizes = [value for value in found if value is not None]
    assert len(sizes) >= 19
    assert sum(sizes) / len(sizes) == pytest.approx(change, abs=0.01)


@pytest.mark.parametrize(("change", "noise"), [(0.0, 0.02), (0.0, 0.1), (0.015, 0.005)])
def test_noise_and_small_trends_are_no_drift(change: float, noise: float) -> None:
    draw = random.Random(2)
    found = [find_drift(_series(draw, change, noise)) for _ in range(40)]
    assert found.count(None) >= 36


def test_five_repetitions_show_a_steady_fall() -> None:
    draw = random.Random(3)
    found = find_drift(_series(draw, -0.1, 0.005, repetitions=5))
    assert found == pytest.approx(-0.1, abs=0.02)


def test_a_machine_that_throttles_after_two_repetitions_is_noticed() -> None:
    assert find_drift([[100.0, 99.0, 90.1, 89.7, 90.2, 89.9, 90.0, 89.8, 90.1, 89.9]]) is not None


@pytest.mark.parametrize("repetitions", [1, 2, 3, 4])
def test_few_repetitions_show_no_trend(repetitions: int) -> None:
    assert find_drift([[100.0 - 10 * step for step in range(repetitions)]]) is None


def test_equal_rates_are_no_drift() -> None:
    assert find_drift([[5.0] * 10]) is None
    assert drift_warnings([[5.0] * 10]) == []


def test_the_warning_says_which_way_and_how_far() -> None:
    falling = [[100.0 - 2 * step for step in range(6)]]
    (fell,) = drift_warnings(falling)
    assert fell.startswith("rates fell by 11% from the first repetition") and "--delay" in fell
    (rose,) = drift_warnings([rates[::-1] for rates in falling])
    assert rose.startswith("rates rose by 11%")


def test_other_work_is_warned_of_where_there_was_any() -> None:
    machine = dataclasses.replace(describe_machine(), busy_cores=1.26, busy=True)
    (warning,) = busy_warnings(machine)
    assert "1.3 cores busy" in warning
    assert busy_warnings(dataclasses.replace(machine, busy=False)) == []


@pytest.mark.parametrize(("repetitions", "held"), [(2, None), (3, "75%"), (4, "88%"), (5, "94%"), (6, None)])
def test_a_range_that_holds_the_median_less_often_than_promised_is_warned_of(
    repetitions: int, held: str | None
) -> None:
    warnings = few_warnings(repetitions)
    assert [held in warning for warning in warnings if held] == ([True] if held else warnings)


def test_rates_that_vary_much_are_warned_of() -> None:
    steady, varying = summarize([10.0, 10.1, 9.9, 10.0]), summarize([10.0, 13.0, 7.0, 10.0])
    assert spread_warnings([steady, steady, summarize([10.0])]) == []
    (warning,) = spread_warnings([steady, varying])
    assert warning.startswith("1 of 2 rates") and "20%" in warning


def test_a_falling_clock_is_warned_of() -> None:
    (warning,) = clock_warnings([3900, 3910, 3895, 3700, 3500, 3300, 3205, 3190, 3200])
    assert "from 3.90 to 3.20 GHz" in warning
    assert clock_warnings([3900, 3910, 3895, 3900, 3890, 3880, 3805, 3790, 3800]) == []
    assert clock_warnings([3200] * 3 + [3900] * 6) == []
    assert clock_warnings([3900, 2000]) == clock_warnings([]) == []


def test_the_clock_is_that_of_the_fastest_core(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = iter([[4000.0, 800.0], [800.0, 3900.0], [3000.0, 3100.0]])

    def cpu_freq(percpu: bool) -> list[SimpleNamespace]:
        assert percpu
        return [SimpleNamespace(current=clock) for clock in next(clocks)]

    monkeypatch.setattr(psutil, "cpu_freq", cpu_freq)
    monkeypatch.setattr(drift_module, "_pmset", lambda: "")
    watch = ClockWatch()
    for _ in range(3):
        watch.note()
    (warning,) = watch.warnings()
    assert "from 4.00 to 3.10 GHz" in warning


@pytest.mark.parametrize("answer", [None, [], [SimpleNamespace(current=0.0)]])
def test_a_machine_that_tells_no_clock_gives_no_warning(answer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: answer)
    monkeypatch.setattr(drift_module, "_pmset", lambda: "")
    watch = ClockWatch()
    for _ in range(3):
        watch.note()
    assert watch.warnings() == []


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("CPU Power notify\n\tCPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= 72\n", "72%"),
        ("CPU Power notify\n\tCPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= 100\n", None),
        ("Note: No thermal warning level has been recorded\nNote: No CPU power status has been recorded\n", None),
        ("Thermal warning level set to 2\n", "heat"),
        ("Thermal warning level set to 0\n", None),
        ("", None),
    ],
)
def test_macos_is_believed(said: str, expected: str | None) -> None:
    warnings = thermal_warnings(said)
    assert (warnings == []) if expected is None else expected in warnings[0]


def test_a_mac_is_asked_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_module, "_pmset", lambda: "CPU_Speed_Limit = 50")
    monkeypatch.setattr("localq.measure.speed.drift.sys.platform", "darwin")
    assert len(ClockWatch().warnings()) == 1
    monkeypatch.setattr("localq.measure.speed.drift.sys.platform", "linux")
    assert ClockWatch().warnings() == []


def test_a_machine_without_pmset_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert drift_module._pmset() == ""
