"""Reports made by hand: what was measured is known, so that what is shown of it can be checked."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from localq.measure.data import Interval, Rate
from localq.measure.reports import (
    BaselineQuality,
    BenchReport,
    BenchSettings,
    BenchTest,
    Cost,
    Divergence,
    EvalReport,
    EvalText,
    FormQuality,
    FormSpeed,
    Machine,
    MemoryLimit,
    QualityComparison,
    SpeedComparison,
    TestResult,
)
from localq.measure.speed import bench_tests

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
SETTINGS = BenchSettings(
    prompt_tokens=(64,), generated_tokens=(16,), depth_tokens=(0,), repetitions=3, context_length=65, threads=4
)
SLOW, FAST, FASTEST = (9.9, 10.0, 10.1), (12.4, 12.5, 12.6), (19.0, 20.0, 21.0)
GB = 10**9


def rate(samples: Sequence[float]) -> Rate:
    """The extremes stand for the interval, which three of them hold the median in with 75%."""
    many = len(samples) > 1
    return Rate(
        median=statistics.median(samples),
        stdev=statistics.stdev(samples) if many else None,
        confidence_interval=(min(samples), max(samples)) if many else None,
        confidence_level=0.75 if many else None,
        samples=tuple(samples),
    )


def form_speed(
    name: str, rates: Sequence[float], settings: BenchSettings = SETTINGS, size: int = 3 << 29, limit: float | None = 50
) -> FormSpeed:
    """Generation at `rates`, prompts ten times as fast."""
    model, _, recipe = name.rpartition(":")

    def result(test: BenchTest) -> TestResult:
        known = None
        if limit and test.generated_tokens:
            share = statistics.median(rates) / limit
            known = MemoryLimit(bytes_per_token=660_000_000, tokens_per_second=limit, share=share)
        samples = [10 * each for each in rates] if test.prompt_tokens else rates
        return TestResult(**test.model_dump(), tokens_per_second=rate(samples), limit=known)

    return FormSpeed(
        model=model,
        recipe=recipe,
        bits_per_weight=4.5 if recipe.startswith("mlx") else None,
        artifact_bytes=size,
        load_seconds=0.25,
        cold_load_seconds=2.5 if recipe.startswith("mlx") else None,
        time_to_first_token_seconds=1.5,
        peak_memory_bytes=700 << 20,
        tests=tuple(map(result, bench_tests(settings))),
    )


def bench_report(
    rates: Mapping[str, Sequence[float]],
    sizes: Mapping[str, int] | None = None,
    settings: BenchSettings = SETTINGS,
    **other: object,
) -> BenchReport:
    """A bench of formats by their names; two differ where they have no rate in common."""
    forms = [form_speed(name, each, settings, (sizes or {}).get(name, 3 << 29)) for name, each in rates.items()]
    pairs = [
        _speed_comparison(test.test, one, two)
        for one, two in itertools.combinations(forms, 2)
        for test in bench_tests(settings)
    ]
    return BenchReport(
        machine=MACHINE,
        settings=settings,
        started=datetime(2026, 11, 21, 4, 5, 6, tzinfo=UTC),
        memory_bandwidth_bytes_per_second=33.1e9,
        warnings=(),
        results=tuple(forms),
        comparisons=tuple(pairs) if settings.repetitions > 1 else (),
        command="localq bench toy -p 64 -g 16 -r 3",
    ).model_copy(update=other)


def form_quality(name: str, kl: float, size: int = 3 << 29) -> FormQuality:
    model, _, recipe = name.rpartition(":")
    figures = dict.fromkeys({**Divergence.model_fields, **Cost.model_fields}, 0.5)
    figures |= {"mean_kl_divergence": kl, "kl_divergence_standard_error": kl / 20, "p99_kl_divergence": 10 * kl}
    figures |= {"max_kl_divergence": 80 * kl, "same_top_fraction": 0.91234, "same_top_standard_error": 0.00456}
    figures |= {"perplexity": 6.54321, "perplexity_standard_error": 0.0389, "reference_perplexity": 6.4}
    figures |= {"log_perplexity_ratio": -0.00001, "log_perplexity_ratio_standard_error": 0.00123}
    figures |= {"rms_probability_change": 0.05519, "rms_probability_change_standard_error": 0.0005}
    figures |= {"prompt_seconds_per_token": 0.0123, "generated_seconds_per_token": 0.0456}
    counts = {"positions": 2040, "peak_memory_bytes": 2 * GB, "bytes_read_per_token": size // 2, "artifact_bytes": size}
    return FormQuality.model_validate({**figures, **counts, "model": model, "recipe": recipe, "bits_per_weight": 4.5})


def eval_report(
    divergences: Mapping[str, float],
    sizes: Mapping[str, int] | None = None,
    floor: float | None = None,
    baseline: str = "gguf-f32",
    **other: object,
) -> EvalReport:
    """An evaluation of formats of one model by their names; two differ where one divergence is twice the other one."""
    results = [form_quality(name, kl, (sizes or {}).get(name, 3 << 29)) for name, kl in divergences.items()]
    model = results[0].model
    reference = form_quality(f"{model}:{baseline}", 0, 6 * GB).model_dump() | {"perplexity": 6.4}
    return EvalReport(
        machine=MACHINE,
        settings=EvalText(
            text="text.txt",
            text_sha256="0f" * 32,
            window_tokens=512,
            first_scored=256,
            windows=8,
            begin_token_id=1,
            positions=2040,
            threads=None,
            generated_tokens=16,
        ),
        started=datetime(2026, 11, 21, 5, 6, 7, tzinfo=UTC),
        reference=BaselineQuality.model_validate(reference),
        noise_floor=None if floor is None else form_quality(f"{model}:mlx-f32", floor, 6 * GB),
        results=tuple(results),
        comparisons=tuple(_quality_comparison(*pair) for pair in itertools.combinations(results, 2)),
        warnings=(),
        command="localq eval toy --window 512",
    ).model_copy(update=other)


def _speed_comparison(test: str, one: FormSpeed, other: FormSpeed) -> SpeedComparison:
    rates = {form.name: item.tokens_per_second for form in (one, other) for item in form.tests if item.test == test}
    faster, slower = sorted(rates, key=lambda name: -rates[name].median)
    low = min(rates[faster].samples) / max(rates[slower].samples)
    high = max(rates[faster].samples) / min(rates[slower].samples)
    ratio = Interval(estimate=rates[faster].median / rates[slower].median, low=low, high=high, level=0.95)
    return SpeedComparison(test=test, faster=faster, slower=slower, ratio=ratio, differs=low > 1)


def _quality_comparison(one: FormQuality, other: FormQuality) -> QualityComparison:
    nearer, farther = sorted((one, other), key=lambda result: result.mean_kl_divergence)
    difference = farther.mean_kl_divergence - nearer.mean_kl_divergence
    interval = Interval(estimate=difference, low=difference / 2, high=difference * 2, level=0.95)
    differs = farther.mean_kl_divergence >= 2 * nearer.mean_kl_divergence
    return QualityComparison(nearer=nearer.name, farther=farther.name, difference=interval, differs=differs)
