"""What forms are compared by: speed in each test, nearness to the original, size; and who is shown to be ahead.

Decides nothing: that a difference is shown was decided where it was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from localq.measure.forms import Form
from localq.measure.page.measurements import FormRow, Measurements
from localq.measure.quality.nearness import LARGEST_NOISE_FLOOR
from localq.measure.quality.results import EvalReport, EvalResult
from localq.measure.speed.results import BenchTest
from localq.tables import format_bytes, format_coarsely

NEGLIGIBLE_SIZE_RATIO = 1.02
"""Sizes that are closer count as equal: nobody chooses by it."""

Pairs = frozenset[tuple[str, str]]
"""Names of two forms, the better one first."""


@dataclass(frozen=True, slots=True)
class Respect:
    """One thing that forms are compared by. Forms go by their names."""

    what: str
    """As in "no difference in ... was shown"."""
    kind: str
    """`tg`, `pp`, `quality` or `size`."""
    ranking: tuple[str, ...]
    """The best estimate first."""
    shown: Pairs
    """Where a difference is shown."""
    predicate: Callable[[str, str, bool], str]
    """What is said of the better one of two; the last argument is whether it is ahead of all, so that the other one is
    the next best."""

    def leader(self, names: Sequence[str]) -> str | None:
        """The one that is shown to be ahead of all others; None where none is."""
        first, *others = self._ranked(names)
        return first if all((first, other) in self.shown for other in others) else None

    def praise(self, leader: str, names: Sequence[str]) -> str:
        """What is said of the leader."""
        return self.predicate(leader, self._ranked(names)[1], len(names) > 2)

    def _ranked(self, names: Sequence[str]) -> list[str]:
        return [name for name in self.ranking if name in names]


def speed_respects(measurements: Measurements) -> list[Respect]:
    """One for each test, generation first; none where nothing was compared."""
    report = measurements.bench
    if not report.comparisons:
        return []
    tests = sorted(report.settings.tests, key=lambda test: test.prompt_tokens > 0)
    labels = {row.form.name: measurements.label(row.form) for row in measurements.rows}
    return [_speed(measurements, test, labels) for test in tests]


def _speed(measurements: Measurements, test: BenchTest, labels: dict[str, str]) -> Respect:
    found = [item for item in measurements.bench.comparisons if item.test == test]
    ratios = {(item.faster, item.slower): item.ratio for item in found}
    medians = {row.form.name: rate.tokens_per_second.median for row in measurements.rows if (rate := row.in_test(test))}
    verb = "reads prompts" if test.prompt_tokens else "generates"

    def predicate(faster: str, slower: str, is_leader: bool) -> str:
        ratio = ratios[faster, slower]
        times = f"{format_coarsely(ratio.estimate)} times as fast as"
        interval = f"{test.name}: {format_coarsely(ratio.low)} to {format_coarsely(ratio.high)}"
        if is_leader:
            return f"{verb} fastest, {times} the next, {labels[slower]} ({interval})"
        return f"{verb} {times} {labels[slower]} ({interval})"

    return Respect(
        what="prompt speed" if test.prompt_tokens else "generation speed",
        kind=test.name[:2],
        ranking=tuple(sorted(medians, key=lambda name: -medians[name])),
        shown=frozenset((item.faster, item.slower) for item in found if item.differs),
        predicate=predicate,
    )


def quality_respect(measurements: Measurements, rows: Sequence[FormRow]) -> Respect | str:
    """Nearness to the reference; or why it can't be said which of these forms is nearer, as the begin of a sentence."""
    report = measurements.evaluation
    if report is None:
        return "Speed alone was measured"
    missing = [measurements.label(row.form) for row in rows if not isinstance(row.quality, EvalResult)]
    if missing:
        return f"How near {', '.join(missing)} is to {_original(measurements, report)} was not measured"
    if _engines_disagree(report, [row.form for row in rows]):
        return "The engines disagree on this model even unquantized, so that speed alone can be compared across them"
    if not report.comparisons:
        return "One window of text does not tell which form is nearer to the original"
    return _quality(measurements, report)


def _quality(measurements: Measurements, report: EvalReport) -> Respect:
    means = {result.form.name: result.divergence.mean_kl_divergence for result in report.results}
    labels = {result.form.name: measurements.label(result.form) for result in report.results}
    original = _original(measurements, report)

    def predicate(nearer: str, farther: str, is_leader: bool) -> str:
        one, other = f"{means[nearer]:.3g}", f"{means[farther]:.3g}"
        if is_leader:
            return f"is the nearest to {original} (mean KL divergence {one}; the next, {labels[farther]}, has {other})"
        return f"is nearer to {original} (mean KL divergence {one} against {other})"

    return Respect(
        what=f"nearness to {original}",
        kind="quality",
        ranking=tuple(sorted(means, key=lambda name: means[name])),
        shown=frozenset((item.nearer, item.farther) for item in report.comparisons if item.differs),
        predicate=predicate,
    )


def size_respect(measurements: Measurements) -> Respect:
    """Bytes on disk, which are known exactly."""
    sizes = {row.form.name: row.form.artifact_bytes for row in measurements.rows}
    labels = {row.form.name: measurements.label(row.form) for row in measurements.rows}

    def predicate(smaller: str, larger: str, is_leader: bool) -> str:
        one, other = format_bytes(sizes[smaller]), format_bytes(sizes[larger])
        if is_leader:
            return f"is the smallest ({one}; the next, {labels[larger]}, has {other})"
        return f"is smaller ({one} against {other})"

    return Respect(
        what="size",
        kind="size",
        ranking=tuple(sorted(sizes, key=lambda name: sizes[name])),
        shown=frozenset(
            (one, other) for one in sizes for other in sizes if sizes[one] * NEGLIGIBLE_SIZE_RATIO < sizes[other]
        ),
        predicate=predicate,
    )


def _original(measurements: Measurements, report: EvalReport) -> str:
    form = report.reference.form
    is_unquantized = form.recipe.partition("-")[2] in ("f32", "bf16", "f16")
    return "the original" if is_unquantized else measurements.label(form)


def _engines_disagree(report: EvalReport, forms: Sequence[Form]) -> bool:
    floor = report.noise_floor
    formats = {form.format for form in forms}
    return floor is not None and len(formats) > 1 and floor.divergence.mean_kl_divergence > LARGEST_NOISE_FLOOR
