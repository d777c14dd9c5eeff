"""Bench reports made by hand: what was measured is known, so that what is said of it can be checked."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

from localq.measure.forms import Form
from localq.measure.machine import Machine
from localq.measure.speed.results import (
    BenchReport,
    BenchSettings,
    BenchTest,
    Comparison,
    FormResult,
    Interval,
    MemoryLimit,
    Summary,
    TestResult,
)

MACHINE = Machine(
    cpu="Test CPU",
    physical_cores=4,
    logical_cores=8,
    memory_bytes=16 << 30,
    os="TestOS 1",
    python="3.11.0",
    versions={"localq": "9.9", "mlx": "0.1", "llama-cpp-python": "0.3"},
    metal=False,
    busy_cores=0.5,
    busy=False,
)
SETTINGS = BenchSettings((64,), (16,), (0,), repetitions=3, context_length=65, threads=4)


def summary(samples: Sequence[float]) -> Summary:
    """The extremes stand for the interval."""
    many = len(samples) > 1
    ends = (min(samples), max(samples)) if many else None
    return Summary(statistics.median(samples), statistics.stdev(samples) if many else None, ends, tuple(samples))


def form_result(
    name: str, rates: Sequence[float], settings: BenchSettings = SETTINGS, limit_rate: float | None = 50.0
) -> FormResult:
    """Generation at `rates`, prompts ten times as fast."""
    model, _, recipe = name.rpartition(":")

    def result(test: BenchTest) -> TestResult:
        if test.prompt_tokens:
            return TestResult(test, summary([10 * rate for rate in rates]), None, None)
        share = statistics.median(rates) / limit_rate if limit_rate else 0
        limit = MemoryLimit(660_000_000, limit_rate, share) if limit_rate else None
        return TestResult(test, summary(rates), limit, None)

    return FormResult(
        form=Form(model, recipe, Path("models"), 3 << 29, 4.5 if recipe.startswith("mlx") else None),
        load_seconds=0.25,
        cold_load_seconds=2.5 if recipe.startswith("mlx") else None,
        time_to_first_token_seconds=1.5,
        tests=tuple(map(result, settings.tests)),
        peak_memory_bytes=700 << 20,
    )


def report(
    results: Sequence[FormResult], settings: BenchSettings = SETTINGS, machine: Machine = MACHINE, warnings: str = ""
) -> BenchReport:
    """Two forms differ where their samples have no rate in common."""
    return BenchReport(
        machine=machine,
        settings=settings,
        results=tuple(results),
        comparisons=tuple(
            _comparison(test, one, other)
            for one, other in itertools.combinations(results, 2)
            for test in settings.tests
        ),
        memory_bandwidth_bytes_per_second=33.1e9,
        warnings=(warnings,) if warnings else (),
        started="2026-11-21T04:05:06+00:00",
    )


def _comparison(test: BenchTest, one: FormResult, other: FormResult) -> Comparison:
    rates = {result.form.name: result.tests[0].tokens_per_second for result in (one, other)}
    faster, slower = sorted(rates, key=lambda name: -rates[name].median)
    low, high = (
        min(rates[faster].samples) / max(rates[slower].samples),
        max(rates[faster].samples) / min(rates[slower].samples),
    )
    ratio = Interval(rates[faster].median / rates[slower].median, low, high)
    return Comparison(test, faster, slower, ratio, differs=low > 1)
