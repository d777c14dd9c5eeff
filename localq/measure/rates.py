"""Rates as people read them: four significant digits, but two decimals at most, three below 1. Knows no tables."""

from __future__ import annotations

import math


def format_rate(value: float, like: float | None = None) -> str:
    """Tokens per second: `31245`, `135.3`, `20.12`, `1.26`, `0.153`; as many decimals as `like` has."""
    return f"{value:.{_decimals(value if like is None else like)}f}"


def format_spread(median: float, stdev: float | None) -> str:
    """`135.3 ± 5.8`; the median alone where the spread is not known."""
    return format_rate(median) if stdev is None else f"{format_rate(median)} ± {format_rate(stdev, like=median)}"


def format_range(low: float, high: float) -> str:
    """`129.1 to 141.4`."""
    return f"{format_rate(low, like=high)} to {format_rate(high)}"


def format_coarsely(value: float) -> str:
    """`1.25`, `13.2`, `135`: three significant digits of a ratio or a limit, two decimals at most."""
    return f"{value:.{max(0, 2 - _magnitude(value)) if value >= 1 else 2}f}"


def _decimals(value: float) -> int:
    return min(2 if value >= 1 else 3, max(0, 3 - _magnitude(value)))


def _magnitude(value: float) -> int:
    """Of 135: 2. What has none, such as 0, is taken for 1."""
    return math.floor(math.log10(value)) if value > 0 else 0


def format_duration(seconds: float) -> str:
    """Three significant digits: `1.23 s`, `45.6 ms`, `59.1 µs`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{format_coarsely(seconds / size)} {unit}"
    return f"{format_coarsely(seconds / 1e-6)} µs"
