"""Which form to take, in one sentence with the measured numbers; or that the measurements don't say.

A form is better than another if it is shown to be ahead of it in a test of speed or in nearness to the original, and
shown to be behind in none of them; and if it is not larger, unless it is ahead in generation and in nearness both: then
the size is told, as the one reason to take the other. One that is better than every other form is recommended. Else
the forms are told with what each is ahead in, without those that another one is better than and no larger. Nothing is
told of a difference that is not shown but that it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from localq.measure.page.measurements import Measurements
from localq.measure.page.respects import Respect, quality_respect, size_respect, speed_respects
from localq.measure.speed.drift import find_drift
from localq.measure.speed.results import BenchReport

HEAVY_DRIFT = 0.1
"""Over the run. Less is warned of, but meets all forms alike, so that their ratios hold."""

_UNDECIDED = "the data don't name one for all"


def recommend(measurements: Measurements) -> str:
    """The sentence. Forms are called by their labels."""
    rows = measurements.candidates
    labels = {row.form.name: measurements.label(row.form) for row in rows}
    if len(rows) < 2:
        measured = next(iter(labels.values()), "what is not quantized")
        beside = " beside what is not quantized" if rows and len(rows) < len(measurements.bench.results) else ""
        return f"There is nothing to choose between: {measured} alone was measured{beside}."
    noise = _heavy_noise(measurements.bench)
    if noise is not None:
        return f"The data don't say which form to take: {noise}."
    speed = speed_respects(measurements)
    if not speed:
        return "The data don't say which form to take: one repetition does not tell how much rates vary."
    quality = quality_respect(measurements, rows)
    if isinstance(quality, str):
        return f"{quality}: {_Choice(tuple(labels), labels, tuple(speed)).facts()}."
    choice = _Choice(tuple(labels), labels, (*speed, quality), size_respect(measurements))
    winner = choice.winner()
    told = choice.take(winner) if winner else choice.trade()
    return f"N{told[1:]}." if told.startswith("no ") else f"{told}."  # a form's name stays as it is


def _heavy_noise(report: BenchReport) -> str | None:
    machine = report.machine
    if machine.busy:
        return f"other work kept {machine.busy_cores:.1f} cores busy; close it and measure again"
    drift = find_drift([item.tokens_per_second.samples for result in report.results for item in result.tests])
    if drift is None or abs(drift) < HEAVY_DRIFT:
        return None
    changed = f"rates {'fell' if drift < 0 else 'rose'} by {abs(drift):.0%} during the run"
    return f"{changed}; measure again on a quiet machine that keeps cool"


@dataclass(frozen=True, slots=True)
class _Choice:
    """Two forms or more, by their names, and what they are compared by."""

    names: tuple[str, ...]
    labels: Mapping[str, str]
    measured: tuple[Respect, ...]
    """Speed, test by test, and nearness."""
    size: Respect | None = None

    def winner(self) -> str | None:
        """The form that is better than every other one."""
        for name in self.names:
            others = [other for other in self.names if other != name]
            if all(self._is_better(name, other) for other in others):
                return name
        return None

    def take(self, winner: str) -> str:
        """Why to take it."""
        praises = self._praises(winner)
        if any(respect.leader(self.names) == winner for respect in self._told() if respect.kind != "size"):
            reasons = f"it {_list(praises)}"
        else:  # ahead of each other form in something, but of all of them in nothing
            reasons = _list([self._reason(winner, other) for other in self.names if other != winner])
        return "; ".join([f"Take {self.labels[winner]}: {reasons}", *self._not_shown(), *self._smaller_than(winner)])

    def trade(self) -> str:
        """What each of the forms is ahead in that are worth taking."""
        left = tuple(name for name in self.names if not any(self._beats(other, name) for other in self.names))
        if len(left) < 2:  # "better" is no ranking: one form may beat another that beats a third, which it does not
            left = self.names
        facts = replace(self, names=left).facts()
        beaten = self._labels([name for name in self.names if name not in left])
        if not beaten:
            return facts
        rest = f"no reason was measured to take {_list(beaten, 'or')}"
        if facts.startswith("no "):
            return f"{facts}; {rest}"
        return f"{'Between' if len(left) == 2 else 'Among'} {_list(self._labels(left))}, {facts}; {rest}"

    def facts(self) -> str:
        """Who is ahead in what, and in what nobody is shown to be."""
        clauses = [f"{self.labels[name]} {_list(praises)}" for name in self.names if (praises := self._praises(name))]
        if all(respect.kind == "size" or respect.leader(self.names) is None for respect in self._told()):
            return "; ".join([self._nothing_shown(), *clauses])
        told = "; ".join([*clauses, *self._not_shown()])
        return told if self.size is None else f"{told}: {_UNDECIDED}"

    def _labels(self, names: Sequence[str]) -> list[str]:
        return [self.labels[name] for name in names]

    def _is_better(self, one: str, other: str) -> bool:
        if any((other, one) in respect.shown for respect in self.measured):
            return False
        ahead = {respect.kind for respect in self.measured if (one, other) in respect.shown}
        return {"tg", "quality"} <= ahead if self._is_larger(one, other) else bool(ahead)

    def _beats(self, one: str, other: str) -> bool:
        """Without any reason to take the other."""
        return self._is_better(one, other) and not self._is_larger(one, other)

    def _is_larger(self, one: str, other: str) -> bool:
        return self.size is not None and (other, one) in self.size.shown

    def _told(self) -> list[Respect]:
        """What is worth telling: the first test of each kind, others where someone else leads, nearness, size."""
        told = []
        first: dict[str, str | None] = {}
        for respect in (*self.measured, *([self.size] if self.size else [])):
            leader = respect.leader(self.names)
            if respect.kind not in first or leader not in (None, first[respect.kind]):
                told.append(respect)
            first.setdefault(respect.kind, leader)
        return told

    def _praises(self, name: str) -> list[str]:
        """What a form leads in."""
        return [respect.praise(name, self.names) for respect in self._told() if respect.leader(self.names) == name]

    def _reason(self, one: str, other: str) -> str:
        """What one form is ahead of another in."""
        respect = next(respect for respect in self.measured if (one, other) in respect.shown)
        told = f"it {respect.predicate(one, other, False)}"
        return f"against {self.labels[other]} {told}" if respect.kind == "quality" else told

    def _smaller_than(self, winner: str) -> list[str]:
        """The one reason to take another form."""
        if self.size is None:
            return []
        smaller = [name for name in self.size.ranking if name in self.names and self._is_larger(winner, name)]
        return [f"{self.labels[name]} {self.size.predicate(name, winner, False)}" for name in smaller[:1]]

    def _not_shown(self) -> list[str]:
        """What nobody leads in."""
        told = [respect for respect in self._told() if respect.kind != "size"]
        whats = [respect.what for respect in told if respect.leader(self.names) is None]
        if not whats:
            return []
        if len(self.names) == 2:
            return [f"no difference was shown in {_list(whats, 'or')}"]
        return [f"which form is ahead of all others in {_list(whats, 'or')} is not shown"]

    def _nothing_shown(self) -> str:
        """That there is no difference in anything that was measured, or at least no leader."""
        whats = _list(list(dict.fromkeys(respect.what for respect in self.measured)), "or")
        names = _list(self._labels(self.names))
        pairs = {(one, other) for one in self.names for other in self.names}
        if any(respect.shown & pairs for respect in self.measured):
            return f"no form of {names} is shown to be ahead of all others in {whats}"
        return f"no difference was shown between {names} in {whats}"


def _list(texts: Sequence[str], word: str = "and") -> str:
    """`a, b and c`."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} {word} {texts[-1]}"
