"""A bench report as a picture of bars."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from localq.disk import check_writable, writing_errors
from localq.errors import OptionError
from localq.measure.plot_style import FACES, load_matplotlib, plot_style
from localq.measure.speed.results import BenchReport, BenchTest, TestResult
from localq.tables import format_bytes, format_coarsely, format_spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_SUFFIXES = (".png", ".svg")

_WIDTH_INCHES, _BAR_INCHES, _TEST_INCHES, _MARGIN_INCHES = 8.0, 0.34, 0.7, 0.9
_PIXELS_PER_INCH = 150
_TITLE_CHARACTERS, _NAME_CHARACTERS = 90, 24
_BAR_HEIGHT = 0.64  # of the distance between two bars
_FARTHEST_LIMIT = 2.5
# A limit beyond so many times the fastest rate is told in words alone: drawn, it would make the bars too short.


def check_plot(file: Path) -> None:
    """Raise OptionError for a file that `save_plot` can't write, BackendUnavailableError without matplotlib."""
    if file.suffix.lower() not in PLOT_SUFFIXES:
        expected = " or ".join(PLOT_SUFFIXES)
        raise OptionError(f"--plot is '{file}'; expected a name that ends in {expected}", "for example bench.svg")
    check_writable(file, "--plot")
    load_matplotlib()


def save_plot(report: BenchReport, file: Path) -> None:
    """Write the picture, as PNG or SVG by the file's suffix; the same report gives the same SVG.

    Bars are medians, whiskers their 95% intervals, a thick tick the limit that memory bandwidth sets. Each test has a
    scale of its own. Raises LocalqError where the file can't be written, and what `check_plot` raises.
    """
    check_plot(file)
    kind = file.suffix[1:].lower()
    with plot_style(), writing_errors(file):
        metadata = {"Date": None} if kind == "svg" else None
        _figure(report).savefig(file, dpi=_PIXELS_PER_INCH, format=kind, metadata=metadata)


def _figure(report: BenchReport) -> Figure:
    from matplotlib.figure import Figure

    tests = report.settings.tests
    height = _MARGIN_INCHES + len(tests) * (_TEST_INCHES + _BAR_INCHES * len(report.results))
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    figure.suptitle(_title(report), fontsize=10)
    for axes, test in zip(figure.subplots(len(tests), squeeze=False)[:, 0], tests, strict=True):
        _draw_test(axes, test, report)
    figure.supxlabel(_legend(report), fontsize=8)
    return figure


def _title(report: BenchReport) -> str:
    machine = report.machine
    models = ", ".join(dict.fromkeys(result.form.model for result in report.results))
    hardware = f"{machine.cpu}, {machine.physical_cores} cores, {format_bytes(machine.memory_bytes)}"
    return "\n".join(line for text in (models, hardware) for line in textwrap.wrap(text, _TITLE_CHARACTERS))


def _legend(report: BenchReport) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.machine.versions.items())
    return "\n".join(
        (
            "tokens per second (bar: median; whisker: its 95% interval; thick tick: limit that memory bandwidth sets)",
            f"{versions}; {report.settings.repetitions} repetitions; measured {report.started}",
        )
    )


def _draw_test(axes: Axes, test: BenchTest, report: BenchReport) -> None:
    """A bar for each form, the first one on top; the figures stand to the right of them."""
    results = [item for result in report.results for item in result.tests if item.test == test]
    fastest = max(_ends(item)[1] for item in results)
    for place, item in enumerate(results):
        colour, hatch = FACES[place % len(FACES)]
        median, (low, high) = item.tokens_per_second.median, _ends(item)
        axes.barh(place, median, _BAR_HEIGHT, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6)
        limit = item.limit.tokens_per_second if item.limit else None
        for ink, extra in (("white", 2.5), ("black", 0.0)):  # an outline keeps black lines apart from the hatch
            if high > low:
                span = [[median - low], [high - median]]
                width = 1.2 + extra
                axes.errorbar(median, place, xerr=span, fmt="none", ecolor=ink, elinewidth=width, capsize=4)
            if limit is not None and limit <= _FARTHEST_LIMIT * fastest:
                axes.vlines(limit, place - 0.45, place + 0.45, colors=ink, linewidth=2.5 + extra, zorder=3)
        axes.text(1.01, place, _figures(item), transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    axes.set_yticks(range(len(results)), _names(report))
    axes.set_ylim(len(results) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_title(_describe(test), loc="left", fontsize=9, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)


def _ends(item: TestResult) -> tuple[float, float]:
    """Of the whisker."""
    rate = item.tokens_per_second
    return rate.confidence_interval or (rate.median, rate.median)


def _figures(item: TestResult) -> str:
    rate = format_spread(item.tokens_per_second.median, item.tokens_per_second.stdev)
    if item.limit is None:
        return rate
    return f"{rate}\n{item.limit.share:.0%} of limit {format_coarsely(item.limit.tokens_per_second)}"


def _names(report: BenchReport) -> list[str]:
    """Of the forms: their recipes alone where the title says of which model they are."""
    forms = [result.form for result in report.results]
    if len({form.model for form in forms}) == 1:
        return [form.recipe for form in forms]
    return [form.name if len(form.name) <= _NAME_CHARACTERS else f"{form.model}\n:{form.recipe}" for form in forms]


def _describe(test: BenchTest) -> str:
    count = test.prompt_tokens or test.generated_tokens
    what = f"prompt of {count} tokens" if test.prompt_tokens else f"generation of {count} tokens"
    return f"{test.name}: {what}" + (f" after {test.depth_tokens}" if test.depth_tokens else "")
