"""Measures what a page shows: speed, then quality of the same forms, each of which may have been measured before.

What can be refused is refused before anything is measured. Knows neither pages nor terminals.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from localq.conversion.convert import ConversionListener
from localq.errors import OptionError
from localq.measure.forms import Form, check_names, find_forms
from localq.measure.page.measurements import Measurements, check_same_forms, join
from localq.measure.quality.evaluate import evaluate
from localq.measure.quality.forms import find_eval_forms, most_context_tokens
from localq.measure.quality.results import EvalReport, EvalSettings
from localq.measure.quality.run import EvalStep
from localq.measure.quality.windows import read_text
from localq.measure.speed.bench import bench_forms
from localq.measure.speed.results import BenchReport, BenchSettings
from localq.reference import parse_reference


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """What a page is to show."""

    references: tuple[str, ...]
    """Of the forms that are measured now; empty where nothing is."""
    bench: BenchSettings | BenchReport
    """How to measure speed, or what was measured."""
    evaluation: EvalSettings | EvalReport | None
    """How to measure quality, or what was measured; None for speed alone."""
    models_dir: Path | None = None


class RunListener:
    """Told how it goes. Does nothing; a subclass does."""

    def on_bench_step(self, step: str) -> None:
        """What comes next of the bench."""

    def on_bench(self, report: BenchReport) -> None:
        """The bench is done; the evaluation comes."""

    def on_eval_step(self, step: EvalStep) -> None:
        """What comes next of the evaluation."""


def measure(request: ReportRequest, run: RunListener, conversions: ConversionListener | None = None) -> Measurements:
    """Measure what was not measured before, making the forms that are missing.

    Raises OptionError where the request makes no sense, and errors of the tree in `localq.errors`.
    """
    _check_text(request)
    forms = _find_forms(request, conversions)
    bench, evaluation = request.bench, request.evaluation
    if isinstance(bench, BenchSettings):
        bench = bench_forms(forms, bench, run.on_bench_step)
        run.on_bench(bench)
    if isinstance(evaluation, EvalSettings):
        evaluation = evaluate(request.references, evaluation, request.models_dir, conversions, run.on_eval_step)
    return join(bench, evaluation)


def _check_text(request: ReportRequest) -> None:
    """There must be a text to evaluate on, and it must be one that can be read again."""
    settings = request.evaluation
    if not isinstance(settings, EvalSettings):
        return
    if settings.text_file == Path("-"):
        raise OptionError("--text is standard input, which nobody can evaluate again", "give a text file")
    if settings.text_file is not None:
        read_text(settings.text_file, settings.windows())
    elif not all(parse_reference(reference).kind == "built-in" for reference in request.references):
        raise OptionError(
            "there is no text to evaluate on", "give a text file with --text FILE, or --no-eval for speed alone"
        )


def _find_forms(request: ReportRequest, conversions: ConversionListener | None) -> list[Form]:
    """The forms that are measured now, all of which fit what was measured before."""
    settings = request.evaluation
    if not isinstance(settings, EvalSettings):
        forms = find_forms(request.references, request.models_dir, conversions)
        if isinstance(settings, EvalReport) and forms:
            check_same_forms(forms, [*(result.form for result in settings.results), settings.reference.form])
    else:
        found = find_eval_forms(
            request.references, settings.reference, settings.noise_floor, request.models_dir, conversions
        )
        settings.windows(most_context_tokens((found.reference, *found.compared)))
        forms = list(found.forms)
        if isinstance(request.bench, BenchReport):
            check_same_forms([result.form for result in request.bench.results], [*forms, found.reference])
    check_names(forms)
    return forms
