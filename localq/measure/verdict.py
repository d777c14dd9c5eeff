"""What reports show in words: which format is faster or nearer to the baseline, and which ones are worth taking.

A format is beaten by another one that is shown to be better in something and worse in nothing: in the speed of a test,
in nearness to the baseline, or in size. Nothing is said of a difference that is not shown, except that it is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from localq.measure.reports import BenchReport, EvalReport, FormSpeed, QualityComparison, SpeedComparison
from localq.tables import format_bytes, format_coarsely, format_rate

NEGLIGIBLE_SIZE_RATIO = 1.02
"""Sizes that are closer count as equal: nobody chooses by it."""
_MOST_FORMS_IN_PAIRS = 3

Names = Mapping[str, str]
"""What formats are called, by their names."""
Pairs = frozenset[tuple[str, str]]
"""Names of two formats of which the first one is shown to be better."""
_Comparison = TypeVar("_Comparison", SpeedComparison, QualityComparison)


@dataclass(frozen=True, slots=True)
class Choice:
    """A format, and what speaks for it or against it."""

    name: str
    """What it is called."""
    reason: str
    """What it is the best in, or which ones beat it; empty where nothing but the numbers can be said."""
    numbers: str
    is_kept: bool
    """Whether no other one beats it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which formats to choose from."""

    headline: str
    choices: tuple[Choice, ...] = ()
    """The beaten ones last; none where nothing can be said."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The headline, a line for each format."""
        said = [(choice.name, "; ".join(filter(None, [choice.reason, choice.numbers]))) for choice in self.choices]
        return (self.headline, *(f"{name}: {text}" for name, text in said))


def judge(bench: BenchReport, evaluation: EvalReport | None, names: Names) -> Verdict:
    """About the formats whose speed was measured, except the baseline and the noise floor."""
    forms = [form for form in bench.results if not evaluation or form.name not in evaluation.roles]
    if len(forms) < 2:
        measured = names[forms[0].name] if forms else "what is not quantized"
        return Verdict(f"There is nothing to choose between: only {measured} was measured.")
    if bench.machine.busy:
        cores = bench.machine.busy_cores
        return Verdict(f"No verdict: other work kept {cores:.1f} cores busy. Close it and measure again.")
    if not bench.comparisons:
        return Verdict("No verdict: one repetition does not show how much speed varies. Measure with more.")
    forms.sort(key=lambda form: -form.tests[-1].tokens_per_second.median)
    found = [form.name for form in forms]
    better = {**_faster(bench), "smallest": _smaller(forms)}
    unknown = _why_nearness_is_unknown(evaluation, forms, names)
    if evaluation and not unknown:
        better[f"nearest to {names[evaluation.reference.name]}"] = _shown(evaluation.comparisons)
    beaten = {name: () if unknown else beaters(name, found, list(better.values())) for name in found}
    best = [name for name in found if all(name in beaten[other] for other in found if other != name)]
    if all(beaten.values()):  # each by another one in something else, where differences are just shown
        beaten = dict.fromkeys(found, ())
    reasons = {
        name: f"beaten by {', '.join(names[other] for other in by)}" if by else _best_in(name, found, better)
        for name, by in beaten.items()
    }
    if best:
        headline = f"Take {names[best[0]]}: it beats every other format."
    elif not any(reasons.values()):
        headline = "No format is shown to be the best in anything."
    elif unknown:
        headline = "Only speed and size are compared."
    else:
        headline = "No format is the best in everything: choose by what matters to you."
    choices = [
        Choice(names[form.name], reasons[form.name], _numbers(form, evaluation), not beaten[form.name])
        for form in sorted(forms, key=lambda form: bool(beaten[form.name]))
    ]
    doubt = "The run was stopped early: more repetitions may change this." if bench.partial else ""
    return Verdict(" ".join(filter(None, [unknown, headline, doubt])), tuple(choices))


def beaters(name: str, names: Iterable[str], better: Sequence[Pairs]) -> tuple[str, ...]:
    """Those of `names` that are shown to be better than one of them in something, and worse in nothing."""
    return tuple(
        other
        for other in names
        if any((other, name) in pairs for pairs in better) and not any((name, other) in pairs for pairs in better)
    )


def _best_in(name: str, names: Sequence[str], better: Mapping[str, Pairs]) -> str:
    """`the smallest, among the nearest ...`: shown against every other one, or no other one shown to be better."""
    said = []
    for what, pairs in better.items():
        worse = sum((name, other) in pairs for other in names)
        if worse == len(names) - 1:
            said.append(f"the {what}")
        elif worse and not any((other, name) in pairs for other in names):
            said.append(f"among the {what}")
    return ", ".join(said)


def _faster(report: BenchReport) -> dict[str, Pairs]:
    """Who is shown to be faster in each test, generation first."""
    tests = sorted(dict.fromkeys(item.test for item in report.comparisons), key=lambda test: test.startswith("pp"))
    better = {}
    for test in tests:
        what = "prompt processing" if test.startswith("pp") else "generation"
        number = f" ({test})" if len({test[:2] for test in tests}) < len(tests) else ""
        better[f"fastest in {what}{number}"] = _shown([item for item in report.comparisons if item.test == test])
    return better


def _shown(comparisons: Sequence[SpeedComparison] | Sequence[QualityComparison]) -> Pairs:
    return frozenset(item.pair for item in comparisons if item.differs)


def _smaller(forms: Sequence[FormSpeed]) -> Pairs:
    sizes = {form.name: form.artifact_bytes for form in forms}
    return frozenset(
        (one, other) for one in sizes for other in sizes if sizes[one] * NEGLIGIBLE_SIZE_RATIO < sizes[other]
    )


def _why_nearness_is_unknown(evaluation: EvalReport | None, forms: Sequence[FormSpeed], names: Names) -> str:
    """A sentence; empty where it is known."""
    evaluated = {result.name for result in evaluation.results} if evaluation else set()
    missing = [names[form.name] for form in forms if form.name not in evaluated]
    if missing:
        return f"The quality of {', '.join(missing)} was not measured." if evaluated else "Quality was not measured."
    if evaluation and (evaluation.engines_agree or len({form.format for form in forms}) == 1):
        return "" if evaluation.comparisons else "One window of text does not show which format is nearer."
    return "The engines disagree on this model even unquantized."


def _numbers(form: FormSpeed, evaluation: EvalReport | None) -> str:
    rates = {"generation": form.generated_tokens_per_second, "prompt": form.prompt_tokens_per_second}
    said = [f"{what} {format_rate(rate.median)} t/s" for what, rate in rates.items() if rate]
    results = evaluation.results if evaluation else ()
    means = [f"mean KL {result.mean_kl_divergence:.3g}" for result in results if result.name == form.name]
    return ", ".join([*said, format_bytes(form.artifact_bytes), *means])


def speed_lines(report: BenchReport, names: Names) -> list[str]:
    """A sentence for every two formats in every test; of more than three formats, for each and the next slower one."""
    lines = []
    for test in dict.fromkeys(item.test for item in report.comparisons):
        items = [item for item in report.comparisons if item.test == test]
        for item in _by_rank(items, len(report.results) > _MOST_FORMS_IN_PAIRS):
            faster, slower = (names[name] for name in item.pair)
            found = f"no difference shown between {faster} and {slower}"
            if item.differs:
                found = f"{faster} is {format_coarsely(item.ratio.estimate)} times as fast as {slower}"
            ends = f"{format_coarsely(item.ratio.low)} to {format_coarsely(item.ratio.high)}"
            lines.append(f"{test}: {found} ({ends}, {item.ratio.level:.0%} interval)")
    return lines


def nearness_lines(report: EvalReport, names: Names) -> list[str]:
    """A sentence for each format and the next one by mean KL divergence: which is nearer, if that is shown."""
    means = {result.name: f"{result.mean_kl_divergence:.3g}" for result in report.results}
    lines = []
    for item in _by_rank(report.comparisons, True):
        nearer, farther = (names[name] for name in item.pair)
        found = f"no difference in nearness shown between {nearer} and {farther}"
        if item.differs:
            values = f"mean KL {means[item.nearer]} against {means[item.farther]}"
            found = f"{nearer} is nearer to {names[report.reference.name]} than {farther}: {values}"
        ends = f"{item.difference.low:.3g} to {item.difference.high:.3g} apart"
        lines.append(f"{found} ({ends}, {item.difference.level:.0%} interval)")
    return lines


def _by_rank(items: Sequence[_Comparison], only_neighbours: bool) -> list[_Comparison]:
    """Comparisons by the better of the two, which is the better of most pairs; of those next to each other, or all."""
    wins = Counter(item.pair[0] for item in items)
    chosen = [item for item in items if not only_neighbours or wins[item.pair[0]] - wins[item.pair[1]] == 1]
    return sorted(chosen, key=lambda item: -wins[item.pair[0]])
