"""What reports show in words: which format is faster or nearer to the baseline, and which ones are worth taking.

A format is beaten by another one that is shown to be better in something and worse in nothing: in the speed of a test,
in nearness to the baseline, or in size. Nothing is said of a difference that is not shown, except that it is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from localq.measure.reports import BenchReport, EvalReport, FormSpeed
from localq.tables import format_bytes, format_coarsely, format_rate

NEGLIGIBLE_SIZE_RATIO = 1.02
"""Sizes that are closer count as equal: nobody chooses by it."""
_MOST_FORMS_IN_PAIRS = 3

Names = Mapping[str, str]
"""What formats are called, by their names."""
Pairs = frozenset[tuple[str, str]]
"""Names of two formats of which the first one is shown to be better."""


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
    doubt: str = ""
    choices: tuple[Choice, ...] = ()
    """The beaten ones last; none where nothing can be said."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The headline, the doubt, a line for each format."""
        said = [(choice.name, "; ".join(filter(None, [choice.reason, choice.numbers]))) for choice in self.choices]
        return (self.headline, *filter(None, [self.doubt]), *(f"{name}: {text}" for name, text in said))


def judge(bench: BenchReport, evaluation: EvalReport | None, names: Names) -> Verdict:
    """About the formats whose speed was measured, except the baseline and the noise floor."""
    unquantized = [evaluation.reference, evaluation.noise_floor] if evaluation else []
    forms = [form for form in bench.results if form.name not in {other.name for other in unquantized if other}]
    if len(forms) < 2:
        measured = names[forms[0].name] if forms else "what is not quantized"
        return Verdict(f"There is nothing to choose between: only {measured} was measured.")
    if bench.machine.busy:
        busy = f"other work kept {bench.machine.busy_cores:.1f} cores busy"
        return Verdict(f"No verdict: {busy}. Close it and measure again.")
    if not bench.comparisons:
        return Verdict("No verdict: one repetition does not show how much speed varies. Measure with more.")
    unknown = _why_nearness_is_unknown(evaluation, forms, names)
    better = {**_better_in_speed(bench), "smallest": _smaller(forms)}
    if evaluation and not unknown:
        nearer = frozenset((item.nearer, item.farther) for item in evaluation.comparisons if item.differs)
        better[f"nearest to {names[evaluation.reference.name]}"] = nearer
    forms.sort(key=lambda form: -form.tests[-1].tokens_per_second.median)
    found = [form.name for form in forms]
    beaten = {name: () if unknown else beaters(name, found, list(better.values())) for name in found}
    if all(beaten.values()):  # each by another one in something else, where differences are just shown
        beaten = dict.fromkeys(found, ())
    reasons = {
        name: f"beaten by {', '.join(names[other] for other in by)}" if by else _best_in(name, found, better)
        for name, by in beaten.items()
    }
    choices = [
        Choice(names[form.name], reasons[form.name], _numbers(form, evaluation), not beaten[form.name])
        for form in sorted(forms, key=lambda form: bool(beaten[form.name]))
    ]
    doubt = "The run was stopped early: more repetitions may change this." if bench.partial else ""
    return Verdict(_headline(beaten, any(reasons.values()), unknown, names), doubt, tuple(choices))


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


def _better_in_speed(report: BenchReport) -> dict[str, Pairs]:
    """Who is shown to be faster in each test, generation first."""
    tests = list(dict.fromkeys(item.test for item in report.comparisons))
    better = {}
    for prefix, what in (("tg", "generation"), ("pp", "prompt processing")):
        of_kind = [test for test in tests if test.startswith(prefix)]
        for test in of_kind:
            found = ((item.faster, item.slower) for item in report.comparisons if item.test == test and item.differs)
            better[f"fastest in {what}" + (f" ({test})" if len(of_kind) > 1 else "")] = frozenset(found)
    return better


def _smaller(forms: Sequence[FormSpeed]) -> Pairs:
    sizes = {form.name: form.artifact_bytes for form in forms}
    return frozenset(
        (one, other) for one in sizes for other in sizes if sizes[one] * NEGLIGIBLE_SIZE_RATIO < sizes[other]
    )


def _why_nearness_is_unknown(evaluation: EvalReport | None, forms: Sequence[FormSpeed], names: Names) -> str:
    """The begin of a sentence; empty where it is known."""
    if evaluation is None:
        return "Quality was not measured"
    evaluated = {result.name for result in evaluation.results}
    missing = [names[form.name] for form in forms if form.name not in evaluated]
    if missing:
        return f"The quality of {', '.join(missing)} was not measured"
    if not evaluation.engines_agree and len({form.format for form in forms}) > 1:
        return "The engines disagree on this model even unquantized"
    return "" if evaluation.comparisons else "One window of text does not show which format is nearer to the baseline"


def _numbers(form: FormSpeed, evaluation: EvalReport | None) -> str:
    rates = {"generation": form.generated_tokens_per_second, "prompt": form.prompt_tokens_per_second}
    means = {result.name: result.mean_kl_divergence for result in (evaluation.results if evaluation else ())}
    return ", ".join(
        [
            *(f"{what} {format_rate(rate.median)} t/s" for what, rate in rates.items() if rate),
            format_bytes(form.artifact_bytes),
            *([f"mean KL {means[form.name]:.3g}"] if form.name in means else []),
        ]
    )


def _headline(beaten: Mapping[str, Sequence[str]], has_reason: bool, unknown: str, names: Names) -> str:
    kept = [name for name in beaten if not beaten[name]]
    if len(kept) == 1 and all(kept[0] in by for name, by in beaten.items() if name != kept[0]):
        return f"Take {names[kept[0]]}: it beats every other format."
    if not has_reason:
        return f"{unknown + ', and no' if unknown else 'No'} format is shown to be the best in anything."
    if unknown:
        return f"{unknown}. Speed and size show:"
    rest = " The beaten ones are better in nothing and worse in something." if len(kept) < len(beaten) else ""
    return f"No format is the best in everything: choose by what matters to you.{rest}"


def speed_lines(report: BenchReport, names: Names) -> list[str]:
    """A sentence for every two formats in every test; of more than three formats, for each and the next slower one.

    None where nothing was compared.
    """
    lines = []
    for test in dict.fromkeys(item.test for item in report.comparisons):
        items = [item for item in report.comparisons if item.test == test]
        beaten = Counter(item.faster for item in items)  # by their medians: the next one beats one less
        for item in sorted(items, key=lambda item: -beaten[item.faster]):
            if len(report.results) > _MOST_FORMS_IN_PAIRS and beaten[item.faster] - beaten[item.slower] > 1:
                continue
            found = f"no difference shown between {names[item.faster]} and {names[item.slower]}"
            if item.differs:
                times = f"{format_coarsely(item.ratio.estimate)} times"
                found = f"{names[item.faster]} is {times} as fast as {names[item.slower]}"
            ends = f"{format_coarsely(item.ratio.low)} to {format_coarsely(item.ratio.high)}"
            lines.append(f"{test}: {found} ({ends}, {item.ratio.level:.0%} interval)")
    return lines


def nearness_lines(report: EvalReport, names: Names) -> list[str]:
    """A sentence for each format and the next one by mean KL divergence: which is nearer, or that none is shown to be.

    None where nothing was compared.
    """
    means = {result.name: result.mean_kl_divergence for result in report.results}
    beaten = Counter(item.nearer for item in report.comparisons)
    lines = []
    for item in sorted(report.comparisons, key=lambda item: -beaten[item.nearer]):
        if beaten[item.nearer] - beaten[item.farther] > 1:
            continue
        found = f"no difference in nearness shown between {names[item.nearer]} and {names[item.farther]}"
        if item.differs:
            values = f"mean KL {means[item.nearer]:.3g} against {means[item.farther]:.3g}"
            nearer, baseline = names[item.nearer], names[report.reference.name]
            found = f"{nearer} is nearer to {baseline} than {names[item.farther]}: {values}"
        ends = f"{item.difference.low:.3g} to {item.difference.high:.3g} apart"
        lines.append(f"{found} ({ends}, {item.difference.level:.0%} interval)")
    return lines
