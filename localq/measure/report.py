"""A bench report as a table: plain text, Markdown or CSV. Measures nothing, prints nothing."""

from __future__ import annotations

import csv
import io
from typing import Literal

from localq.measure.bench import BenchReport, BenchSettings, FormResult, Summary
from localq.tables import format_bytes, format_table

TableStyle = Literal["text", "md", "csv"]

_TEXT_COLUMNS = 2  # model and form; all others are numbers and stand to the right

_CSV_HEADER = (
    "model",
    "recipe",
    "bits_per_weight",
    "artifact_bytes",
    "load_seconds",
    "prompt_tokens",
    "generated_tokens",
    "repetitions",
    "threads",
    "time_to_first_token_seconds",
    "prompt_tokens_per_second_median",
    "prompt_tokens_per_second_stdev",
    "generated_tokens_per_second_median",
    "generated_tokens_per_second_stdev",
    "peak_memory_bytes",
)


def render_table(report: BenchReport, style: TableStyle = "text") -> str:
    """The results, a row a form, without a newline at the end.

    `text` and `md` are rounded for reading and end with a line on machine, versions and settings; `pp512` and
    `tg128` are llama-bench's names for prompt processing and text generation. `csv` has full precision, and an
    empty field for what is not known.
    """
    if style == "csv":
        return _csv(report)
    header = _header(report.settings)
    rows = [_row(result) for result in report.results]
    lines = _markdown(header, rows) if style == "md" else format_table(header, rows, _TEXT_COLUMNS).splitlines()
    return "\n".join([*lines, "", *_caption(report)])


def _header(settings: BenchSettings) -> list[str]:
    return [
        "model",
        "form",
        "bits/weight",
        "size",
        "load",
        "first token",
        f"pp{settings.prompt_tokens} t/s",
        f"tg{settings.generated_tokens} t/s",
        "peak memory",
    ]


def _row(result: FormResult) -> list[str]:
    bits = result.form.bits_per_weight
    return [
        result.form.model,
        result.form.recipe,
        "-" if bits is None else f"{bits:.2f}",
        format_bytes(result.form.artifact_bytes),
        _duration(result.load_seconds),
        _duration(result.time_to_first_token_seconds),
        _rate(result.prompt_tokens_per_second),
        _rate(result.generated_tokens_per_second),
        format_bytes(result.peak_memory_bytes),
    ]


def _caption(report: BenchReport) -> list[str]:
    machine, settings = report.machine, report.settings
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [
        f"{machine.cpu}, {machine.physical_cores} cores, {format_bytes(machine.memory_bytes)}, "
        f"{'Metal' if machine.metal else 'no Metal'}; {machine.os}, Python {machine.python}; {versions}.",
        f"Median ± standard deviation; repetitions after a warm-up: {settings.repetitions}; "
        f"llama.cpp on {_threads(settings.threads)}.",
    ]
    if machine.busy:
        lines.append(f"Other work kept {machine.busy_cores:.1f} cores busy at the start: close it and measure again.")
    return lines


def _threads(chosen: int | None) -> str:
    if chosen is None:
        return "a thread per available core, on one alone for a very small model"
    return f"{chosen} thread{'s' if chosen > 1 else ''}"


def _markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---" if index < _TEXT_COLUMNS else "---:" for index in range(len(header))]
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *escaped)]


def _csv(report: BenchReport) -> str:
    settings = report.settings
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_CSV_HEADER)
    for result in report.results:
        writer.writerow(
            [
                result.form.model,
                result.form.recipe,
                result.form.bits_per_weight,
                result.form.artifact_bytes,
                result.load_seconds,
                settings.prompt_tokens,
                settings.generated_tokens,
                settings.repetitions,
                settings.threads,
                result.time_to_first_token_seconds,
                result.prompt_tokens_per_second.median,
                result.prompt_tokens_per_second.stdev,
                result.generated_tokens_per_second.median,
                result.generated_tokens_per_second.stdev,
                result.peak_memory_bytes,
            ]
        )
    return stream.getvalue().removesuffix("\n")


def _rate(rate: Summary) -> str:
    return f"{rate.median:.2f}" if rate.stdev is None else f"{rate.median:.2f} ± {rate.stdev:.2f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
