"""What makes the figures of a run less sure, in sentences: other work, rates that vary or drift, a falling clock."""

from __future__ import annotations

import itertools
import math
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence

from localq.measure.machine import Machine
from localq.measure.speed.intervals import FEWEST_FOR_95_PERCENT, FEWEST_FOR_AN_INTERVAL
from localq.measure.speed.results import Summary

_LEAST_DRIFT = 0.03
"""From the first repetition to the last one; less is no more than what repetitions differ by anyway."""
_LEAST_CLOCK_DROP = 0.05
_WIDE_INTERVAL = 0.2
_SIGNIFICANCE = 0.05
_ALL_ORDERS_UP_TO = 7
"""Repetitions whose orders are all tried: 5,040. Of more, so many are drawn."""
_DRAWN_ORDERS = 4999
_SEED = 20


def busy_warnings(machine: Machine) -> list[str]:
    """Of other work, as it was at the start."""
    if not machine.busy:
        return []
    return [f"other work kept {machine.busy_cores:.1f} cores busy at the start: close it and measure again"]


def few_warnings(repetitions: int) -> list[str]:
    """Of intervals that promise more than so few repetitions can hold."""
    if not FEWEST_FOR_AN_INTERVAL <= repetitions < FEWEST_FOR_95_PERCENT:
        return []
    held = 1 - 2 * 0.5**repetitions
    return [
        f"of {repetitions} repetitions the interval of a rate is their range, which holds the true median in "
        f"{held:.0%} of cases, not in 95%: take {FEWEST_FOR_95_PERCENT} or more (-r)"
    ]


def spread_warnings(summaries: Sequence[Summary]) -> list[str]:
    """Of rates that are hardly known, because they differ much from repetition to repetition."""
    widths = [
        (summary.confidence_interval[1] - summary.confidence_interval[0]) / summary.median
        for summary in summaries
        if summary.confidence_interval is not None
    ]
    wide = [width for width in widths if width > _WIDE_INTERVAL]
    if not wide:
        return []
    return [
        f"{len(wide)} of {len(summaries)} rates have intervals wider than {_WIDE_INTERVAL:.0%} of themselves: close "
        "other programs and measure again, or longer (-r, -g)"
    ]


def drift_warnings(series: Sequence[Sequence[float]]) -> list[str]:
    """Of rates that fall or rise over the run; `series` has the rates of each form in each test, by repetition."""
    drift = find_drift(series)
    if drift is None:
        return []
    if drift < 0:
        return [
            f"rates fell by {-drift:.0%} from the first repetition to the last one: the machine gets hot or has other "
            "work; a pause before each measurement (--delay) lets it cool down"
        ]
    return [
        f"rates rose by {drift:.0%} from the first repetition to the last one: other work came to its end, or the "
        "machine had not reached its speed; measure again"
    ]


def find_drift(series: Sequence[Sequence[float]]) -> float | None:
    """By which part of itself the rate changes from the first repetition to the last one; None for no clear trend.

    Every series is taken relative to its own median, and all are averaged by repetition, because what heats the machine
    meets them all. The change is that of the fitted line. It counts from 3% on, and only if fewer than one in twenty
    orders of the repetitions have as steep a line (a permutation test, which needs five repetitions to be that sure).
    """
    relative = [[value / statistics.median(values) - 1 for value in values] for values in series]
    averages = [statistics.fmean(turn) for turn in zip(*relative, strict=True)]
    if len(averages) < 3:
        return None
    change = _slope(averages) * (len(averages) - 1)
    return change if abs(change) >= _LEAST_DRIFT and _chance_of_slope(averages) <= _SIGNIFICANCE else None


class ClockWatch:
    """The processor's clock over a run, where the machine tells it."""

    def __init__(self) -> None:
        self._megahertz: list[float] = []

    def note(self) -> None:
        """Read the clock of the fastest core; right after work, when it has not slowed down yet."""
        import psutil

        frequencies = psutil.cpu_freq(percpu=True) if hasattr(psutil, "cpu_freq") else []
        now = max((frequency.current for frequency in frequencies or []), default=0.0)
        if now > 0:
            self._megahertz.append(now)

    def warnings(self) -> list[str]:
        """Of a clock that fell over the run, and of a speed limit that is in force now."""
        return [*clock_warnings(self._megahertz), *(thermal_warnings(_pmset()) if sys.platform == "darwin" else ())]


def clock_warnings(megahertz: Sequence[float]) -> list[str]:
    """Of a median over the last third of the readings that lies 5% or more below that over the first."""
    third = len(megahertz) // 3
    if third == 0:
        return []
    first, last = statistics.median(megahertz[:third]), statistics.median(megahertz[-third:])
    if last > first * (1 - _LEAST_CLOCK_DROP):
        return []
    return [
        f"the processor's clock fell from {first / 1000:.2f} to {last / 1000:.2f} GHz during the run: "
        "a pause before each measurement (--delay) lets it cool down"
    ]


def thermal_warnings(said: str) -> list[str]:
    """Of what `pmset -g therm` says on a Mac. By its documentation; not tried on a Mac.

    Intel Macs give `CPU_Speed_Limit`, in percent; others a `thermal warning level` once there is one.
    """
    limit = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", said)
    if limit and int(limit[1]) < 100:
        return [f"macOS holds the processor at {limit[1]}% of its speed, because of heat"]
    if re.search(r"(thermal|performance) warning level\s*(=|:|set to)\s*[1-9]", said, re.IGNORECASE):
        return ["macOS reports that it holds the processor back, because of heat"]
    return []


def _pmset() -> str:
    """What macOS says of heat; empty where it can't be asked."""
    try:
        return subprocess.run(["pmset", "-g", "therm"], capture_output=True, text=True, check=False, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _slope(values: Sequence[float]) -> float:
    """Of the line that fits best, by least squares, per step."""
    return statistics.linear_regression(range(len(values)), values).slope


def _chance_of_slope(values: Sequence[float]) -> float:
    """Share of the orders of these values whose line is as steep, up or down."""
    middle = (len(values) - 1) / 2

    def steepness(order: Sequence[float]) -> float:
        return abs(sum((position - middle) * value for position, value in enumerate(order)))

    least = steepness(values) * (1 - 1e-9)  # the same sum in another order
    if len(values) <= _ALL_ORDERS_UP_TO:
        steep = sum(steepness(order) >= least for order in itertools.permutations(values))
        return steep / math.factorial(len(values))
    draw = random.Random(_SEED)
    orders = (draw.sample(values, len(values)) for _ in range(_DRAWN_ORDERS))
    return (1 + sum(steepness(order) >= least for order in orders)) / (1 + _DRAWN_ORDERS)
