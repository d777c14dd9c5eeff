"""Measures speed, then quality of the same formats; each may have been measured before.

What can be refused is refused before anything is measured. Knows neither pages nor terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from localq.conversion.convert import ConversionListener
from localq.errors import OptionError
from localq.measure.baseline import find_eval_forms
from localq.measure.forms import Form, find_forms
from localq.measure.quality import EvalSettings, evaluate, find_text
from localq.measure.reports import BenchReport, BenchSettings, EvalReport, FormFacts
from localq.measure.speed import bench_forms
from localq.measure.worker import OnStep


@dataclass(frozen=True, slots=True)
class ReportRequest:
    """What to measure."""

    references: tuple[str, ...]
    """Of the artifacts that are measured now; empty where nothing is."""
    bench: BenchSettings | BenchReport
    """How to measure speed, or what was measured."""
    evaluation: EvalSettings | EvalReport | None
    """How to measure quality, or what was measured; None for speed alone."""
    models_dir: Path | None = None


def measure(
    request: ReportRequest,
    on_bench: Callable[[BenchReport], None] = lambda report: None,
    listener: ConversionListener | None = None,
    on_step: OnStep = lambda step: None,
) -> tuple[BenchReport, EvalReport | None]:
    """Measure what was not measured before, making the artifacts that are missing.

    `on_bench` is called with a finished bench, before quality is measured. A bench that was stopped with Ctrl-C is
    partial; then quality is not measured. Raises OptionError where the request makes no sense, else errors of the tree
    in `localq.errors`.
    """
    bench, evaluation = request.bench, request.evaluation
    if isinstance(evaluation, EvalSettings):
        _check_text(request.references, evaluation)
    forms = _find_forms(request, listener)
    if isinstance(bench, BenchSettings):
        bench = bench_forms(forms, bench, on_step)
        if not bench.partial:
            on_bench(bench)
        elif isinstance(evaluation, EvalSettings):
            evaluation = None
    if isinstance(evaluation, EvalSettings):
        evaluation = evaluate(request.references, evaluation, request.models_dir, listener, on_step)
    if evaluation is not None:
        check_same_forms(bench.results, [*evaluation.results, evaluation.reference])
    return bench, evaluation


def check_same_forms(speeds: Iterable[FormFacts], qualities: Iterable[FormFacts]) -> None:
    """Raise OptionError where what was measured in speed and what was evaluated are not the same artifacts."""
    sizes, evaluated = ({form.name: form.artifact_bytes for form in forms} for forms in (speeds, qualities))
    common = sizes.keys() & evaluated.keys()
    if not common:
        raise OptionError(
            f"no artifact was measured in both speed and quality: {', '.join(sizes)} against {', '.join(evaluated)}",
            "measure speed and quality of the same artifacts",
        )
    for name in sorted(common):
        if sizes[name] != evaluated[name]:
            raise OptionError(
                f"{name} had {sizes[name]} bytes when its speed was measured and {evaluated[name]} when its quality "
                "was: it is not the same artifact",
                "measure both again",
            )


def _check_text(references: Sequence[str], settings: EvalSettings) -> None:
    """There must be a text to evaluate on, and it must be one that can be read again."""
    if settings.text_file == Path("-"):
        raise OptionError("--text is standard input, which can't be read again", "give a text file")
    try:
        find_text(references, settings)
    except OptionError as error:
        raise OptionError(error.message, f"{error.hint}; or --no-eval for speed alone") from error


def _find_forms(request: ReportRequest, listener: ConversionListener | None) -> Sequence[Form]:
    """The artifacts that are measured now, which must be the same as what was measured before."""
    settings = request.evaluation
    if not isinstance(settings, EvalSettings):
        forms: Sequence[Form] = find_forms(request.references, request.models_dir, listener)
        if isinstance(settings, EvalReport) and forms:
            check_same_forms(forms, [*settings.results, settings.reference])
        return forms
    found = find_eval_forms(request.references, settings.baseline, settings.noise_floor, request.models_dir, listener)
    settings.fitted(found.most_context_tokens)  # raises for a window that is longer
    if isinstance(request.bench, BenchReport):
        check_same_forms(request.bench.results, [*found.forms, found.baseline])
    return found.forms
