"""What a bench report shows in words: which form is faster, and where that is not shown. Decides nothing itself."""

from __future__ import annotations

from collections.abc import Sequence

from localq.measure.speed.results import BenchReport, BenchTest, Comparison, Interval
from localq.tables import format_coarsely

_MOST_FORMS_IN_PAIRS = 3


def comparison_lines(report: BenchReport) -> list[str]:
    """A sentence for every two forms in every test; for more than three forms one for each test, on who leads.

    None where nothing was compared.
    """
    if len(report.results) <= _MOST_FORMS_IN_PAIRS:
        return [_pair(item) for test in report.settings.tests for item in report.comparisons if item.test == test]
    return [_lead(report, test) for test in report.settings.tests if report.comparisons]


def _pair(comparison: Comparison) -> str:
    faster, slower, ratio = comparison.faster, comparison.slower, comparison.ratio
    if comparison.differs:
        return f"{comparison.test.name}: {faster} is {_times(ratio)} as fast as {slower} ({_range(ratio)})"
    return f"{comparison.test.name}: no difference shown between {faster} and {slower} ({_range(ratio)})"


def _lead(report: BenchReport, test: BenchTest) -> str:
    fastest, second, *_ = _by_speed(report, test)
    beaten = {item.slower: item for item in report.comparisons if item.test == test and item.faster == fastest}
    names = [result.form.name for result in report.results]
    rivals = [name for name in names if name != fastest and not (name in beaten and beaten[name].differs)]
    if rivals:
        return f"{test.name}: which form is the fastest is not shown; it is {_either([fastest, *rivals])}"
    ratio = beaten[second].ratio
    return f"{test.name}: {fastest} is the fastest, {_times(ratio)} as fast as the next, {second} ({_range(ratio)})"


def _by_speed(report: BenchReport, test: BenchTest) -> list[str]:
    medians = {
        result.form.name: item.tokens_per_second.median
        for result in report.results
        for item in result.tests
        if item.test == test
    }
    return sorted(medians, key=lambda name: -medians[name])


def _times(ratio: Interval) -> str:
    return f"{format_coarsely(ratio.estimate)} times"


def _range(ratio: Interval) -> str:
    return f"{format_coarsely(ratio.low)} to {format_coarsely(ratio.high)}"


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
