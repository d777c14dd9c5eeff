from __future__ import annotations

import math
import random
import statistics as python_statistics

import numpy as np
import pytest

from localq.measure import statistics
from localq.measure.reports import BenchSettings
from localq.measure.statistics import (
    NEGLIGIBLE_RATIO,
    paired_interval,
    ratio_of_medians,
    shows_difference,
    student_quantile,
    summarize,
)

_TRIALS = 400
_LEVELS = {3: 0.75, 4: 0.875, 5: 0.9375, 6: 0.95, 7: 0.95, 10: 0.95}


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_RESAMPLES", 999)


def _two_forms(
    draw: random.Random, slowdown: float, disturbed: float = 0.0, count: int = BenchSettings().repetitions
) -> tuple[list[float], list[float]]:
    """Rates of two forms that a bench could find: the second one is slower by `slowdown`.

    A noise of 1 to 2% in each rate, a clock that falls by 3% over the run and wanders, which slows both forms, turns
    of changing order; a share `disturbed` of the rates is 15% too low.
    """
    noise = draw.uniform(0.01, 0.02)
    rates: tuple[list[float], list[float]] = ([], [])
    wandering = 0.0
    for repetition in range(1, count + 1):
        for position, form in enumerate((1, 0) if repetition % 2 else (0, 1)):
            wandering += draw.gauss(0, 0.003)
            clock = 1 - 0.03 * (repetition + position / 2) / count + wandering
            hit = 0.85 if draw.random() < disturbed else 1.0
            rates[form].append(100 * clock * hit * (1 - slowdown * form) * math.exp(draw.gauss(0, noise)))
    return rates


def _winner(rates: tuple[list[float], list[float]]) -> str | None:
    """As `localq bench` names it: the form with the higher median, where the ratio shows a difference."""
    first_is_faster = np.median(rates[0]) >= np.median(rates[1])
    faster, slower = rates if first_is_faster else rates[::-1]
    if not shows_difference(ratio_of_medians(faster, slower)):
        return None
    return "first" if first_is_faster else "second"


def test_a_summary_has_the_median_and_the_sample_standard_deviation() -> None:
    draw = random.Random(5)
    for count in range(2, 9):
        samples = [draw.uniform(1, 100) for _ in range(count)]
        rate = summarize(samples)
        assert rate.median == pytest.approx(python_statistics.median(samples), rel=1e-15)
        assert rate.stdev == pytest.approx(python_statistics.stdev(samples), rel=1e-12)
        assert rate.samples == tuple(samples)


def test_the_spread_of_a_single_sample_is_not_known() -> None:
    rate = summarize([3.5])
    assert (rate.median, rate.stdev, rate.confidence_interval, rate.confidence_level) == (3.5, None, None, None)
    assert summarize([3.5, 4.5]).confidence_interval is None


def test_the_interval_of_few_samples_is_their_range_and_that_of_many_is_repeatable() -> None:
    for samples in ([2.0, 9.0, 4.0], [1.0, 5.0, 2.0, 8.0, 3.0]):
        assert summarize(samples).confidence_interval == (min(samples), max(samples))
    many = [random.Random(1).gauss(100, 3) for _ in range(10)]
    assert summarize(many) == summarize(many)


@pytest.mark.parametrize("count", [*_LEVELS])
def test_the_interval_of_the_median_holds_it_as_often_as_its_level_says(count: int) -> None:
    draw = random.Random(8)
    rates = [summarize([draw.gauss(100, 1) for _ in range(count)]) for _ in range(_TRIALS)]
    held = sum(ends is not None and ends[0] <= 100 <= ends[1] for ends in (rate.confidence_interval for rate in rates))
    assert {rate.confidence_level for rate in rates} == {_LEVELS[count]}
    assert held / _TRIALS == pytest.approx(_LEVELS[count], abs=0.04)


@pytest.mark.parametrize("count", [*_LEVELS])
@pytest.mark.parametrize("slowdown", [0.0, 0.05, 0.4])
def test_the_interval_of_a_ratio_holds_it_as_often_as_its_level_says(count: int, slowdown: float) -> None:
    draw = random.Random(6)
    ratios = [ratio_of_medians(*_two_forms(draw, slowdown, count=count)) for _ in range(_TRIALS)]
    held = sum(ratio.low <= 1 / (1 - slowdown) <= ratio.high for ratio in ratios)
    assert {ratio.level for ratio in ratios} == {_LEVELS[count]}
    assert held / _TRIALS == pytest.approx(_LEVELS[count], abs=0.045)


def test_a_ratio_is_that_of_the_medians_in_the_table() -> None:
    one, other = [9069.0, 1000.0, 20000.0], [1937.0, 1800.0, 900.0]
    assert ratio_of_medians(one, other).estimate == summarize(one).median / summarize(other).median


@pytest.mark.parametrize("winner", ["first", "second"])
def test_a_slowdown_of_5_percent_is_found(winner: str) -> None:
    draw = random.Random(1)
    named = []
    for _ in range(_TRIALS):
        rates = _two_forms(draw, 0.05)
        named.append(_winner(rates if winner == "first" else rates[::-1]))
    assert named.count(winner) >= 0.95 * _TRIALS
    assert set(named) <= {winner, None}


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 10])
@pytest.mark.parametrize("slowdown", [0.0, 0.01])
def test_no_winner_is_named_for_up_to_1_percent(slowdown: float, count: int) -> None:
    draw = random.Random(2)
    named = [_winner(_two_forms(draw, slowdown, count=count)) for _ in range(_TRIALS)]
    assert named.count(None) >= (0.97 if count > 2 else 0.94) * _TRIALS


def test_rates_that_other_work_disturbed_name_no_wrong_winner_and_hide_few() -> None:
    draw = random.Random(4)
    found = [_winner(_two_forms(draw, 0.05, disturbed=0.05)) for _ in range(_TRIALS)]
    assert found.count("first") >= 0.8 * _TRIALS and "second" not in found
    equal = [_winner(_two_forms(draw, 0.0, disturbed=0.05)) for _ in range(_TRIALS)]
    assert equal.count(None) >= 0.97 * _TRIALS


def test_what_slows_both_forms_in_a_turn_cancels_out() -> None:
    clock = [1.0, 0.5, 0.9, 0.4, 0.8]
    ratio = ratio_of_medians([100 * step for step in clock], [80 * step for step in clock])
    assert [ratio.estimate, ratio.low, ratio.high] == pytest.approx([1.25] * 3)
    assert shows_difference(ratio)


def test_equal_and_almost_equal_rates_name_no_winner() -> None:
    ratio = ratio_of_medians([3.0, 4.0], [3.0, 4.0])
    assert (ratio.estimate, ratio.low, ratio.high) == (1, 1, 1)
    assert not shows_difference(ratio)
    assert not shows_difference(ratio_of_medians([100 * NEGLIGIBLE_RATIO * 0.999] * 6, [100.0] * 6))


def test_two_repetitions_tell_little() -> None:
    assert not shows_difference(ratio_of_medians([105.0, 107.0], [100.0, 100.5]))
    assert shows_difference(ratio_of_medians([490.0, 500.0], [100.0, 101.0]))


def test_a_paired_interval_is_students() -> None:
    """The differences of Student's own example (1908, "The probable error of a mean"), hours of sleep gained."""
    interval = paired_interval([1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4])
    assert (interval.estimate, interval.level) == (pytest.approx(1.58), 0.95)
    assert (interval.low, interval.high) == (pytest.approx(0.7001, abs=1e-3), pytest.approx(2.4599, abs=1e-3))


def test_the_paired_interval_holds_the_mean_in_95_of_100_cases() -> None:
    draw = np.random.default_rng(3)
    for count in (2, 4, 12, 60):
        intervals = [paired_interval(draw.standard_normal(count) + 1) for _ in range(4000)]
        held = np.mean([interval.low <= 1 <= interval.high for interval in intervals])
        assert 0.94 < held < 0.96, count


def test_the_quantiles_are_those_of_students_distribution() -> None:
    """By integrating the density from 0 on, with Simpson's rule."""
    for freedom in (1, 2, 4, 7, 14, 15, 20, 60):
        scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        steps = 4000
        width = student_quantile(freedom) / steps
        weights = [1, *([4, 2] * (steps // 2))[: steps - 1], 1]
        heights = (scale * (1 + (width * step) ** 2 / freedom) ** (-(freedom + 1) / 2) for step in range(steps + 1))
        half = sum(weight * height for weight, height in zip(weights, heights, strict=True)) * width / 3
        assert 0.5 + half == pytest.approx(0.975, abs=1e-4)
