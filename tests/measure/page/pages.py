"""Measurements made by hand: what was measured is known, so that what a page says of it can be checked."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from localq.measure.forms import Form
from localq.measure.machine import Machine
from localq.measure.page.measurements import Measurements, join
from localq.measure.quality.divergence import Divergence, Estimate
from localq.measure.quality.results import Cost, EvalReport, EvalResult, Nearness, ReferenceResult, UsedText
from localq.measure.speed.results import BenchReport, BenchSettings, Interval
from tests.measure.speed.bench_reports import MACHINE, SETTINGS, form_result
from tests.measure.speed.bench_reports import report as bench_report

COST = Cost(
    load_seconds=0.5, prompt_seconds_per_token=1e-4, generated_seconds_per_token=None, peak_memory_bytes=90 << 20
)
SLOW, FAST, FASTEST = [9.9, 10.0, 10.1], [12.4, 12.5, 12.6], [19.0, 20.0, 21.0]


def speeds(
    rates: Mapping[str, Sequence[float]],
    sizes: Mapping[str, int] | None = None,
    settings: BenchSettings = SETTINGS,
    machine: Machine = MACHINE,
) -> BenchReport:
    """A bench of forms by their names; two differ where they have no rate in common."""
    results = [form_result(name, samples, settings) for name, samples in rates.items()]
    sized = [
        replace(result, form=replace(result.form, artifact_bytes=(sizes or {}).get(result.form.name, 1_000_000_000)))
        for result in results
    ]
    return bench_report(sized, settings, machine)


def eval_result(name: str, kl: float, size: int = 1_000_000_000) -> EvalResult:
    model, _, recipe = name.rpartition(":")
    values = dict.fromkeys((field.name for field in fields(Divergence)), 0.5)
    values |= {"mean_kl_divergence": kl, "perplexity": 12.0, "reference_perplexity": 10.0}
    divergence = replace(Divergence(**values), positions=100)  # type: ignore[arg-type]
    return EvalResult(Form(model, recipe, Path("models"), size, 4.5), divergence, COST, size // 2)


def qualities(
    divergences: Mapping[str, float],
    sizes: Mapping[str, int] | None = None,
    floor: float | None = None,
    reference: str = "gguf-f32",
    windows: int = 4,
) -> EvalReport:
    """An evaluation of forms of one model by their names; two differ where one divergence is twice the other one."""
    results = [eval_result(name, kl, (sizes or {}).get(name, 1_000_000_000)) for name, kl in divergences.items()]
    model = results[0].form.model
    noise = None if floor is None else eval_result(f"{model}:mlx-f32", floor)
    return EvalReport(
        machine=MACHINE,
        text=UsedText("text.txt", "0f" * 32, 512, 256, windows, 1),
        threads=None,
        reference=ReferenceResult(eval_result(f"{model}:{reference}", 0).form, Estimate(10.0, 0.1), COST, 500_000_000),
        noise_floor=noise,
        results=tuple(results),
        comparisons=tuple(_nearness(*pair) for pair in itertools.combinations(results, 2)) if windows > 1 else (),
        warnings=(),
        started="2026-11-21T05:06:07+00:00",
    )


def measurements(
    rates: Mapping[str, Sequence[float]],
    divergences: Mapping[str, float] | None,
    sizes: Mapping[str, int] | None = None,
) -> Measurements:
    """Both of the same forms; without divergences speed alone."""
    return join(speeds(rates, sizes), qualities(divergences, sizes) if divergences else None)


def _nearness(one: EvalResult, other: EvalResult) -> Nearness:
    nearer, farther = sorted((one, other), key=lambda result: result.divergence.mean_kl_divergence)
    means = [result.divergence.mean_kl_divergence for result in (nearer, farther)]
    difference = means[1] - means[0]
    interval = Interval(difference, difference / 2, difference * 2)
    return Nearness(nearer.form.name, farther.form.name, interval, differs=means[1] >= 2 * means[0])
