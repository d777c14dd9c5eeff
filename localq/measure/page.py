"""Speed and quality of a model's formats side by side: as a page in HTML, as Markdown and as text. Measures nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from localq.measure.documents import bench_document, eval_document, eval_rows
from localq.measure.reports import BenchReport, EvalReport, FormFacts, Machine
from localq.measure.tables import Document, format_time, labels, title
from localq.measure.verdict import Verdict, judge
from localq.tables import format_bytes, format_rate
from localq.version import __version__

Figure = tuple[float, str, tuple[float, float] | None]
"""What becomes a bar: a number, how it is written, and the ends of its interval."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A format in a panel."""

    name: str
    role: str
    """`baseline`, `noise floor`, `beaten`, or empty for a format that no other one beats."""
    value: float | None = None
    """None where nothing was measured."""
    text: str = "not measured"
    ends: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars of one kind; all begin at zero."""

    title: str
    note: str
    bars: tuple[Bar, ...]

    @property
    def largest(self) -> float:
        """What fills the room for bars."""
        return max(end for bar in self.bars for end in (bar.value or 0.0, *(bar.ends or ()))) or 1.0


@dataclass(frozen=True, slots=True)
class Page:
    """What is shown of a bench and an evaluation."""

    document: Document
    subtitle: str
    verdict: Verdict
    panels: tuple[Panel, ...]


def make_page(bench: BenchReport, evaluation: EvalReport | None, commands: Sequence[str] = ()) -> Page:
    """Both of the same formats, or speed alone; `commands` are the lines that repeat it, else those of the reports."""
    forms = [*bench.results, *(eval_rows(evaluation) if evaluation else ())]
    names = labels(forms)
    verdict = judge(bench, evaluation, names)
    document = bench_document(bench, names)
    if evaluation:
        quality = eval_document(evaluation, names)
        document = replace(
            document,
            tables=(*document.tables, quality.tables[0]),  # the second one has what a bench measures properly
            findings=(*document.findings, *quality.findings),
            facts=tuple({**dict(quality.facts), **dict(document.facts)}.items()),
            warnings=(*document.warnings, *quality.warnings, *differences(bench.machine, evaluation.machine)),
            commands=(*document.commands, *quality.commands),
        )
    document = replace(
        document,
        title=title(forms, "speed and quality" if evaluation else "speed") + " (partial)" * bench.partial,
        verdict=verdict.lines,
        commands=tuple(commands) or document.commands,
    )
    roles = {choice.name: "" if choice.is_kept else "beaten" for choice in verdict.choices}
    roles |= {name: "" for name in names.values() if name not in roles}
    for form, role in evaluation.roles.items() if evaluation else ():
        roles.pop(names[form])  # what is not to choose comes last
        roles[names[form]] = role
    panels = tuple(
        Panel(name, note, tuple(_bars({names[form]: figure for form, figure in figures.items()}, roles)))
        for name, note, figures in _figures(bench, evaluation, forms)
    )
    return Page(document, f"{bench.machine.cpu}, {format_time(bench.started)}", verdict, panels)


def render_html(page: Page) -> str:
    """One HTML5 file that needs no other, for screens and for paper. Every text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(page=page, version=__version__)


def differences(speed: Machine, quality: Machine) -> list[str]:
    """What makes a bench and an evaluation less comparable."""
    found = []
    if (speed.cpu, speed.memory_bytes) != (quality.cpu, quality.memory_bytes):
        found.append(f"speed was measured on another machine ({speed.cpu}) than quality ({quality.cpu})")
    one, other = speed.versions, quality.versions
    changed = [name for name in dict.fromkeys([*one, *other]) if one.get(name) != other.get(name)]
    if changed:
        versions = ", ".join(f"{name} {one.get(name, 'none')} and {other.get(name, 'none')}" for name in changed)
        found.append(f"speed and quality were measured with different versions: {versions}")
    return found


def _figures(
    bench: BenchReport, evaluation: EvalReport | None, forms: Sequence[FormFacts]
) -> Iterator[tuple[str, str, dict[str, Figure]]]:
    """Title, note and figures of each panel."""
    figures: dict[str, Figure]
    tests: dict[str, dict[str, Figure]] = {}
    for result in bench.results:
        for item in result.tests:
            rate = item.tokens_per_second
            figure = rate.median, format_rate(rate.median), rate.confidence_interval
            tests.setdefault(item.test, {})[result.name] = figure
    for test in sorted(tests, key=lambda test: test.startswith("pp")):
        name = "Prompt processing" if test.startswith("pp") else "Generation"
        yield name, f"tokens/s in {test}; more is better", tests[test]
    figures = {form.name: (form.artifact_bytes, format_bytes(form.artifact_bytes), None) for form in forms}
    if evaluation and evaluation.noise_floor:
        del figures[evaluation.noise_floor.name]
    yield "Size", "on disk; less is better", figures
    if evaluation:
        figures = {}
        for form in filter(None, [evaluation.noise_floor, *evaluation.results]):
            mean, error = form.mean_kl_divergence, form.kl_divergence_standard_error
            figures[form.name] = mean, f"{mean:.3g}", None if error is None else (max(0.0, mean - error), mean + error)
        yield "Distance from the baseline", "mean KL in nats; less is better", figures


def _bars(figures: Mapping[str, Figure], roles: Mapping[str, str]) -> Iterator[Bar]:
    """In the order of the roles; of the baseline and the noise floor only what was measured."""
    for name, role in roles.items():
        if name in figures:
            yield Bar(name, role, *figures[name])
        elif role in ("", "beaten"):
            yield Bar(name, role)
