"""A bench report for people, as plain text or Markdown, and as CSV. Measures nothing, prints nothing."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Literal, TypeVar

from localq.measure.speed.report_csv import render_csv
from localq.measure.speed.results import BenchReport, BenchSettings, FormResult, TestResult
from localq.measure.speed.verdicts import comparison_lines
from localq.tables import format_bytes, format_coarsely, format_duration, format_range, format_spread, format_table

TableStyle = Literal["text", "md", "csv"]

_WIDTH = 120
"""Of text that is written to no terminal, in columns."""

_FORM_HEADER = ("model", "form", "load", "cold load", "first token", "peak memory")
_LEFT_COLUMNS = 2
"""Model and form; what follows stands to the right, tests too, as in llama-bench's table."""

_Value = TypeVar("_Value")


def render_table(report: BenchReport, style: TableStyle = "text", command: str = "", width: int = _WIDTH) -> str:
    """The results, a row for each form and test, without a newline at the end.

    `text` and `md` are rounded for reading; the forms' own figures, what the comparison shows, machine, settings,
    versions and warnings follow. `text` lists the tests under each form where a row would be longer than `width`.
    `csv` has full precision, and an empty field for what is not known. `command` is the line that repeats it.
    """
    if style == "csv":
        return render_csv(report, command)
    if style == "md":
        return "\n".join(_markdown(report, command))
    return "\n".join(_text(report, command, width))


def _text(report: BenchReport, command: str, width: int) -> list[str]:
    rates = _aligned(_rate_rows(report))
    if max(map(len, rates)) <= width:
        tables = [*_section(rates), *_section(_aligned(_form_rows(report)))]
    else:
        tables = [line for result in report.results for line in _block(result, _has_energy(report), width)]
    said = [*_section(comparison_lines(report)), *_caption(report)]
    said += [f"warning: {warning}" for warning in report.warnings]
    wrapped = [line for paragraph in said for line in _wrapped(paragraph, width)]
    # The command stays one line, to be copied.
    return [*tables, *wrapped, *([f"repeat: {command}"] if command else [])]


def _markdown(report: BenchReport, command: str) -> list[str]:
    lines = [*_section(_markdown_table(_rate_rows(report))), *_section(_markdown_table(_form_rows(report)))]
    lines += _section([f"- {line}" for line in comparison_lines(report)])
    lines += [f"- {line}" for line in _caption(report)]
    lines += [f"- **warning**: {warning}" for warning in report.warnings]
    return [*lines, *(["", f"    {command}"] if command else [])]


def _rate_rows(report: BenchReport) -> list[list[str]]:
    energy = _has_energy(report)
    header = ["model", "form", "size", "bits/weight", *_test_header(energy)]
    return [
        header,
        *(
            [
                result.form.model,
                result.form.recipe,
                format_bytes(result.form.artifact_bytes),
                _or_dash(result.form.bits_per_weight, "{:.2f}".format),
                *_test_cells(item, energy),
            ]
            for result in report.results
            for item in result.tests
        ),
    ]


def _form_rows(report: BenchReport) -> list[list[str]]:
    rows = [[result.form.model, result.form.recipe, *_form_cells(result)] for result in report.results]
    return [list(_FORM_HEADER), *rows]


def _block(result: FormResult, energy: bool, width: int) -> list[str]:
    """A form with its tests under it, for a narrow terminal."""
    form = result.form
    facts = [format_bytes(form.artifact_bytes)]
    if form.bits_per_weight is not None:
        facts.append(f"{form.bits_per_weight:.2f} bits/weight")
    facts += [f"{name} {cell}" for name, cell in zip(_FORM_HEADER[2:], _form_cells(result), strict=True) if cell != "-"]
    table = _aligned([_test_header(energy), *(_test_cells(item, energy) for item in result.tests)], left_columns=1)
    return _section([form.name, *_wrapped("  " + ", ".join(facts), width), *("  " + line for line in table)])


def _test_header(energy: bool) -> list[str]:
    return ["test", "t/s", "95% interval", "of memory limit", *(["J/token"] if energy else [])]


def _test_cells(result: TestResult, energy: bool) -> list[str]:
    rate, limit = result.tokens_per_second, result.limit
    cells = [
        result.test.name,
        format_spread(rate.median, rate.stdev),
        _or_dash(rate.confidence_interval, lambda ends: format_range(*ends)),
        _or_dash(limit, lambda known: f"{known.share:.0%} of {format_coarsely(known.tokens_per_second)}"),
    ]
    return [*cells, _or_dash(result.joules_per_token, "{:.3g}".format)] if energy else cells


def _form_cells(result: FormResult) -> list[str]:
    return [
        format_duration(result.load_seconds),
        _or_dash(result.cold_load_seconds, format_duration),
        _or_dash(result.time_to_first_token_seconds, format_duration),
        format_bytes(result.peak_memory_bytes),
    ]


def _has_energy(report: BenchReport) -> bool:
    return any(item.joules_per_token is not None for result in report.results for item in result.tests)


def _caption(report: BenchReport) -> list[str]:
    """Machine, settings, versions: what a stranger needs to repeat it."""
    machine = report.machine
    bandwidth = format_bytes(report.memory_bandwidth_bytes_per_second)
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return [
        f"machine: {machine.cpu}, {machine.physical_cores} cores, {format_bytes(machine.memory_bytes)}, "
        f"{'Metal' if machine.metal else 'no Metal'}; {machine.os}; measured {report.started}",
        f"memory limit: {bandwidth}/s, measured in this run, over the bytes that a token reads",
        f"settings: {settings_text(report.settings)}",
        f"versions: {versions}, Python {machine.python}",
    ]


def settings_text(settings: BenchSettings) -> str:
    """How it was measured, in one line; sizes of prompts and replies stand in the tests' names."""
    count = settings.repetitions
    parts = [
        f"median ± standard deviation of {count} repetition{'s' * (count > 1)}, each in a warm process of its own",
        f"context of {settings.context_length} tokens",
        f"keys and values in {settings.kv_cache_type or 'full'}",
        f"at most {settings.batch_tokens} prompt tokens in a pass",
        f"llama.cpp on {_threads(settings.threads)}, flash attention {_flash_attention(settings.flash_attention)}",
    ]
    if settings.delay_seconds:
        parts.append(f"a pause of {settings.delay_seconds:g} s before each measurement")
    return "; ".join(parts)


def _threads(chosen: int | None) -> str:
    if chosen is None:
        return "a thread per available core (on one alone for a very small model)"
    return f"{chosen} thread{'s' * (chosen > 1)}"


def _flash_attention(chosen: bool | None) -> str:
    return "as it chooses" if chosen is None else "on" if chosen else "off"


def _section(lines: list[str]) -> list[str]:
    """The lines and an empty one, where there are any."""
    return [*lines, ""] if lines else []


def _aligned(rows: list[list[str]], left_columns: int = _LEFT_COLUMNS) -> list[str]:
    return format_table(rows[0], rows[1:], left_columns).splitlines()


def _markdown_table(rows: list[list[str]]) -> list[str]:
    header, *others = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    rule = ["---" if column < _LEFT_COLUMNS else "---:" for column in range(len(header))]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *others)]


def _wrapped(paragraph: str, width: int) -> list[str]:
    return textwrap.wrap(paragraph, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) or [
        ""
    ]


def _or_dash(value: _Value | None, text: Callable[[_Value], str]) -> str:
    return "-" if value is None else text(value)
