from __future__ import annotations

import math
import random
import statistics

import pytest

from localq.measure.speed.intervals import NEGLIGIBLE_RATIO, compare, student_quantile, summarize
from localq.measure.speed.results import BenchSettings, BenchTest

_TEST = BenchTest(generated_tokens=128)
_TRIALS = 400


def _two_forms(draw: random.Random, slowdown: float, spoilt: float = 0.0) -> tuple[list[float], list[float]]:
    """Rates of two forms that a bench with the default settings could find: the second one is slower by `slowdown`.

    A noise of 1 to 2% in each rate, a clock that falls by 3% over the run and wanders, which meets both forms, turns
    of changing order; a share `spoilt` of the rates is 15% too low.
    """
    count = BenchSettings().repetitions
    noise = draw.uniform(0.01, 0.02)
    rates: tuple[list[float], list[float]] = ([], [])
    wandering = 0.0
    for repetition in range(1, count + 1):
        for position, form in enumerate((1, 0) if repetition % 2 else (0, 1)):
            wandering += draw.gauss(0, 0.003)
            clock = 1 - 0.03 * (repetition + position / 2) / count + wandering
            hit = 0.85 if draw.random() < spoilt else 1.0
            rates[form].append(100 * clock * hit * (1 - slowdown * form) * math.exp(draw.gauss(0, noise)))
    return rates


def _compare(rates: tuple[list[float], list[float]]) -> tuple[str | None, float, float]:
    """The winner that is named, and the ends of the interval of the first form's rate over the second one's."""
    found = compare(_TEST, ("first", rates[0]), ("second", rates[1]))
    ends = (found.ratio.low, found.ratio.high)
    low, high = ends if found.faster == "first" else (1 / ends[1], 1 / ends[0])
    return found.faster if found.differs else None, low, high


def test_a_summary_has_the_median_and_the_sample_standard_deviation() -> None:
    draw = random.Random(5)
    for count in range(2, 9):
        samples = [draw.uniform(1, 100) for _ in range(count)]
        summary = summarize(samples)
        assert summary.median == statistics.median(samples)
        assert summary.stdev == statistics.stdev(samples)
        assert summary.samples == tuple(samples)


def test_the_spread_of_a_single_sample_is_not_known() -> None:
    summary = summarize([3.5])
    assert (summary.median, summary.stdev, summary.confidence_interval) == (3.5, None, None)
    assert summarize([3.5, 4.5]).confidence_interval is None


def test_the_interval_of_few_samples_is_their_range() -> None:
    for samples in ([2.0, 9.0, 4.0], [1.0, 5.0, 2.0, 8.0, 3.0]):
        assert summarize(samples).confidence_interval == (min(samples), max(samples))


def test_a_report_can_be_computed_again() -> None:
    samples = [random.Random(1).gauss(100, 3) for _ in range(10)]
    assert summarize(samples) == summarize(samples)


@pytest.mark.parametrize("count", [6, 10])
def test_the_interval_of_the_median_holds_it_in_95_of_100_cases(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localq.measure.speed.intervals._RESAMPLES", 999)
    draw = random.Random(8)
    intervals = [summarize([draw.gauss(0, 1) for _ in range(count)]).confidence_interval for _ in range(_TRIALS)]
    held = sum(ends is not None and ends[0] <= 0 <= ends[1] for ends in intervals)
    assert 0.93 <= held / _TRIALS <= 0.99


@pytest.mark.parametrize("winner", ["first", "second"])
def test_a_slowdown_of_5_percent_is_found(winner: str) -> None:
    draw = random.Random(1)
    named = []
    for _ in range(_TRIALS):
        rates = _two_forms(draw, 0.05)
        named.append(_compare(rates if winner == "first" else rates[::-1])[0])
    assert named.count(winner) >= 0.95 * _TRIALS
    assert set(named) <= {winner, None}


@pytest.mark.parametrize("slowdown", [0.0, 0.01])
def test_no_winner_is_named_for_up_to_1_percent(slowdown: float) -> None:
    draw = random.Random(2)
    named = [_compare(_two_forms(draw, slowdown))[0] for _ in range(_TRIALS)]
    assert named.count(None) >= 0.97 * _TRIALS


def test_nineteen_of_twenty_runs_are_right() -> None:
    for slowdown, expected in ((0.05, "first"), (0.01, None), (0.0, None)):
        draw = random.Random(3)
        assert [_compare(_two_forms(draw, slowdown))[0] for _ in range(20)].count(expected) >= 19


def test_rates_that_other_work_spoilt_name_no_wrong_winner_and_hide_few() -> None:
    draw = random.Random(4)
    found = [_compare(_two_forms(draw, 0.05, spoilt=0.05))[0] for _ in range(_TRIALS)]
    assert found.count("first") >= 0.8 * _TRIALS and "second" not in found
    equal = [_compare(_two_forms(draw, 0.0, spoilt=0.05))[0] for _ in range(_TRIALS)]
    assert equal.count(None) >= 0.97 * _TRIALS


@pytest.mark.parametrize("slowdown", [0.0, 0.05, 0.4])
def test_the_interval_of_a_ratio_holds_it_in_95_of_100_runs(slowdown: float) -> None:
    draw = random.Random(6)
    ends = [_compare(_two_forms(draw, slowdown))[1:] for _ in range(_TRIALS)]
    held = sum(low <= 1 / (1 - slowdown) <= high for low, high in ends)
    assert 0.92 <= held / _TRIALS <= 0.98


def test_what_meets_both_forms_alike_cancels_out() -> None:
    clock = [1.0, 0.5, 0.9, 0.4, 0.8]
    found = compare(_TEST, ("one", [80 * step for step in clock]), ("other", [100 * step for step in clock]))
    assert (found.test, found.faster, found.slower, found.differs) == (_TEST, "other", "one", True)
    assert [found.ratio.estimate, found.ratio.low, found.ratio.high] == pytest.approx([1.25] * 3)


def test_equal_rates_name_no_winner() -> None:
    found = compare(_TEST, ("one", [3.0, 4.0]), ("other", [3.0, 4.0]))
    assert not found.differs
    assert (found.ratio.low, found.ratio.high) == (1, 1)


def test_a_sure_but_negligible_difference_is_none() -> None:
    faster = [100 * NEGLIGIBLE_RATIO * 0.999] * 6
    assert not compare(_TEST, ("one", faster), ("other", [100.0] * 6)).differs


def test_two_repetitions_tell_little() -> None:
    assert not compare(_TEST, ("one", [105.0, 107.0]), ("other", [100.0, 100.5])).differs


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
