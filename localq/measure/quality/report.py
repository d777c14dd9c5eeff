"""What an evaluation found for people, as plain text or Markdown, and as CSV. Computes nothing, prints nothing."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from localq.measure.forms import Form
from localq.measure.quality.divergence import Divergence
from localq.measure.quality.results import Cost, EvalReport, EvalResult, Nearness, ReferenceResult
from localq.tables import format_bytes, format_duration, format_table

TableStyle = Literal["text", "md", "csv"]

_WIDTH = 120
"""Of sentences that are written to no terminal, in columns; tables may be wider there."""
_QUALITY = (
    "form",
    "bits/weight",
    "KL divergence",
    "99%",
    "largest",
    "same top",
    "perplexity",
    "ln ratio",
    "RMS Δp",
)
_COST = (
    "form",
    "size",
    "of reference",
    "read/token",
    "prompt token",
    "generated token",
    "peak memory",
    "largest change",
    "mean change",
)
_NONE = "-"
_Value = TypeVar("_Value")


def render_evaluation(
    report: EvalReport, style: TableStyle = "text", command: str = "", width: int | None = None
) -> str:
    """The reference, the noise floor and the forms, a row each, without a newline at the end.

    `text` and `md` are rounded for reading; which form is nearer, what the columns mean, settings, machine and warnings
    follow. `text` has paragraphs in place of tables that are wider than `width`. `csv` has full precision, and an empty
    field for what is not known. `command` is the line that repeats it.
    """
    if style == "csv":
        return _csv(report, command)
    tables = [_quality_rows(report), _cost_rows(report)]
    if style == "md":
        lines = [line for rows in tables for line in (*_markdown(rows), "")]
        lines += [f"- {line}" for line in (*nearness_lines(report), *_caption(report))]
        lines += [f"- **warning**: {warning}" for warning in report.warnings]
        return "\n".join([*lines, *(["", f"    {command}"] if command else [])])
    nearness = nearness_lines(report)
    said = [
        *nearness,
        *([""] if nearness else []),
        *_caption(report),
        *(f"warning: {text}" for text in report.warnings),
    ]
    lines = [line for rows in tables for line in (*_aligned(rows, width), "")]
    lines += [line for paragraph in said for line in _wrapped(paragraph, width or _WIDTH)]
    # The command stays one line, to be copied.
    return "\n".join([*lines, *([f"repeat: {command}"] if command else [])])


def nearness_lines(report: EvalReport) -> list[str]:
    """A sentence for each form and the next one by mean KL divergence: which is nearer, or that none is shown to be."""
    ranked = sorted(report.results, key=lambda result: result.divergence.mean_kl_divergence)
    means = {result.form.name: result.divergence.mean_kl_divergence for result in ranked}
    pairs = {(item.nearer, item.farther): item for item in report.comparisons}
    names = [result.form.name for result in ranked]
    found = [pairs[pair] for pair in zip(names, names[1:], strict=False) if pair in pairs]
    return [_sentence(item, means, report.text.windows) for item in found]


def _sentence(item: Nearness, means: dict[str, float], windows: int) -> str:
    difference = item.difference
    interval = f"{difference.low:.3g} to {difference.high:.3g} apart, 95% interval over {windows} windows"
    if not item.differs:
        return f"no difference shown between {item.nearer} and {item.farther} ({interval})"
    return (
        f"{item.nearer} is nearer to the reference than {item.farther}: mean KL divergence {means[item.nearer]:.3g} "
        f"against {means[item.farther]:.3g} ({interval})"
    )


def _rows(report: EvalReport) -> list[tuple[str, ReferenceResult | EvalResult]]:
    """What is shown, with its label: the reference, the noise floor, the forms."""
    floor = report.noise_floor
    models = {report.reference.form.model, *(result.form.model for result in report.results)}

    def label(form: Form) -> str:
        name = form.name if len(models) > 1 else form.recipe
        return f"{name} (noise floor)" if floor and form == floor.form else name

    rows: list[tuple[str, ReferenceResult | EvalResult]] = [
        (f"{label(report.reference.form)} (reference)", report.reference)
    ]
    if floor and all(result.form != floor.form for result in report.results):
        rows.append((label(floor.form), floor))
    return rows + [(label(result.form), result) for result in report.results]


def _quality_rows(report: EvalReport) -> list[list[str]]:
    rows = []
    for label, result in _rows(report):
        bits = _or_dash(result.form.bits_per_weight, "{:.2f}".format)
        if isinstance(result, ReferenceResult):
            perplexity = _perplexity(result.perplexity.value, result.perplexity.standard_error)
            rows.append([label, bits, _NONE, _NONE, _NONE, _NONE, perplexity, _NONE, _NONE])
        else:
            rows.append([label, bits, *_quality_cells(result.divergence)])
    return [list(_QUALITY), *rows]


def _quality_cells(found: Divergence) -> list[str]:
    return [
        _spread(found.mean_kl_divergence, found.kl_divergence_standard_error, ".3g", ".2g"),
        f"{found.p99_kl_divergence:.3g}",
        f"{found.max_kl_divergence:.3g}",
        _percent(found.same_top_fraction, found.same_top_standard_error),
        _perplexity(found.perplexity, found.perplexity_standard_error),
        _spread(found.log_perplexity_ratio, found.log_perplexity_ratio_standard_error, "+z.4f", ".4f"),
        _percent(found.rms_probability_change, found.rms_probability_change_standard_error),
    ]


def _cost_rows(report: EvalReport) -> list[list[str]]:
    whole = report.reference.form.artifact_bytes
    rows = []
    for label, result in _rows(report):
        changes = [_NONE, _NONE]
        if isinstance(result, EvalResult):
            found = result.divergence
            changes = [f"{found.max_log_probability_change:.3g}", f"{found.mean_log_probability_change:.3g}"]
        size = result.form.artifact_bytes
        read = _or_dash(result.bytes_read_per_token, format_bytes)
        rows.append([label, format_bytes(size), f"{size / whole:.1%}", read, *_cost_cells(result.cost), *changes])
    return [list(_COST), *rows]


def _cost_cells(cost: Cost) -> list[str]:
    return [
        format_duration(cost.prompt_seconds_per_token),
        _or_dash(cost.generated_seconds_per_token, format_duration),
        format_bytes(cost.peak_memory_bytes),
    ]


def _caption(report: EvalReport) -> list[str]:
    """What the columns mean, and what a stranger needs to repeat it."""
    text, machine = report.text, report.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    begin = "" if text.begin_token_id is None else f" that begin with token {text.begin_token_id}"
    threads = "a thread per available core" if report.threads is None else f"{report.threads} threads"
    floor = report.noise_floor
    lines = [
        f"{report.reference.form.name} is the reference. KL divergence: mean over positions ± standard error, in nats; "
        "99%: that of one position in a hundred is larger; same top: the likeliest token is the same; ln ratio: of "
        "perplexity to the reference's; Δp: change of the right token's probability",
        "change: of a log-probability, among the reference's 1,024 likeliest tokens. Seconds per token are indicative: "
        "`localq bench` measures them properly",
    ]
    if floor:
        lines.append(f"noise floor: {floor.form.name} is not quantized; what it differs by is the engines' arithmetic")
    return [
        *lines,
        f"text: {text.text} (sha256 {text.text_sha256[:16]}...), {text.windows} windows of {text.window_tokens} tokens"
        f"{begin}; scored from position {text.first_scored} on, {text.positions:,} positions",
        f"machine: {machine.cpu}, {machine.physical_cores} cores, {format_bytes(machine.memory_bytes)}, "
        f"{'Metal' if machine.metal else 'no Metal'}; {machine.os}; llama.cpp on {threads}; {report.started}",
        f"versions: {versions}, Python {machine.python}",
    ]


def _csv(report: EvalReport, command: str) -> str:
    """A row for the reference, the noise floor and every form, with the columns of the JSON."""
    records = [("reference", report.reference.to_json())]
    if report.noise_floor:
        records.append(("noise_floor", report.noise_floor.to_json()))
    records += [("form", result.to_json()) for result in report.results]
    whole = report.to_json()
    shared = {**whole["settings"], "started": whole["started"], "cpu": report.machine.cpu, "os": report.machine.os}
    rows: list[dict[str, Any]] = [{"role": role, **record, **shared, "command": command} for role, record in records]
    stream = io.StringIO()
    # The columns are the same for every report: those of a form, which has all that the reference has.
    writer = csv.DictWriter(stream, list(rows[-1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().removesuffix("\n")


def _aligned(rows: Sequence[list[str]], width: int | None) -> list[str]:
    """A table; where it is wider than a terminal, a paragraph for each row."""
    header, *others = rows
    lines = format_table(header, others).splitlines()
    if width is None or max(map(len, lines)) <= width:
        return lines
    known = [
        (row[0], [f"{name} {cell}" for name, cell in zip(header[1:], row[1:], strict=True) if cell != _NONE])
        for row in others
    ]
    return [line for label, cells in known for line in (label, *_wrapped(f"  {', '.join(cells)}", width))]


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    header, *others = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    rule = ["---" if column == 0 else "---:" for column in range(len(header))]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *others)]


def _wrapped(paragraph: str, width: int) -> list[str]:
    lines = textwrap.wrap(paragraph, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return lines or [""]


def _spread(value: float, standard_error: float | None, form: str, error_form: str | None = None) -> str:
    error = "" if standard_error is None else f" ± {standard_error:{error_form or form}}"
    return f"{value:{form}}{error}"


def _perplexity(value: float, standard_error: float | None) -> str:
    return _spread(value, standard_error, ".4f" if value < 100 else ".1f")


def _percent(fraction: float, standard_error: float | None) -> str:
    error = "" if standard_error is None else f" ± {standard_error:.2%}"
    return f"{fraction:.2%}{error}".replace("% ±", " ±")


def _or_dash(value: _Value | None, text: Callable[[_Value], str]) -> str:
    return _NONE if value is None else text(value)
