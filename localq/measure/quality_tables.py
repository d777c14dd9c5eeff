"""An eval report for people and as CSV. Measures nothing, prints nothing."""

from __future__ import annotations

from collections.abc import Mapping

from localq.measure.reports import BaselineQuality, EvalReport, FormQuality
from localq.measure.tables import (
    BITS,
    SIZE,
    Column,
    Document,
    TableStyle,
    figure,
    format_time,
    labels,
    machine_facts,
    make_table,
    render,
    render_csv,
    title,
)
from localq.measure.verdict import nearness_lines
from localq.tables import format_bytes, format_duration

_Row = BaselineQuality | FormQuality


def render_eval(report: EvalReport, style: TableStyle = "text", width: int | None = None) -> str:
    """The baseline, the noise floor and the formats, a row each, without a newline at the end.

    `text` and `md` are rounded for reading; `text` leaves out columns for which `width` has no room. `csv` has full
    precision and the names of the JSON, and an empty field for what is not known.
    """
    if style == "csv":
        return render_csv(_records(report))
    return render(eval_document(report), style, width)


def eval_document(report: EvalReport, names: Mapping[str, str] | None = None) -> Document:
    """What an eval report shows; `names` has what formats are called. The first table is how near each format is."""
    names = names or labels(_rows(report))
    tables = {"Quality": _quality_columns(report, names), "Size and cost": _cost_columns(report, names)}
    return Document(
        title=title([report.reference, *report.results], "quality"),
        tables=tuple(make_table(caption, columns, _rows(report)) for caption, columns in tables.items()),
        findings=tuple(nearness_lines(report, names)),
        facts=(*machine_facts(report.machine), *_facts(report, names)),
        warnings=report.warnings,
        commands=tuple(filter(None, [report.command])),
    )


def _quality_columns(report: EvalReport, names: Mapping[str, str]) -> list[Column[_Row]]:
    same_top = "share of positions with the same most likely token ± standard error"
    change = "√(mean squared change of the right token's probability) ± standard error"
    return [
        Column("format", lambda row: _label(report, row, names), is_text=True),
        Column("mean KL", figure("mean_kl_divergence", ".3g", "kl_divergence", ".2g"), _KL),
        Column("99% KL", figure("p99_kl_divergence", ".3g"), "one position in a hundred has more", 4),
        Column("largest KL", figure("max_kl_divergence", ".3g"), "of all positions", 6),
        Column("same top", figure("same_top_fraction", ".2%", "same_top", ".2%"), same_top, 1),
        Column("perplexity", _perplexity, _PERPLEXITY, 2),
        Column("ln ratio", figure("log_perplexity_ratio", "+z.4f", "log_perplexity_ratio", ".4f"), _LN, 3),
        Column("RMS Δp", figure("rms_probability_change", ".2%", "rms_probability_change", ".2%"), change, 5),
    ]


_KL = "mean Kullback-Leibler divergence from the baseline in nats ± standard error"
_PERPLEXITY = "exp(mean of -ln probability of the right token) ± standard error"
_LN = "ln(perplexity / the baseline's) ± standard error"
_INDICATIVE = "seconds, roughly; `localq bench` measures speed properly"


def _cost_columns(report: EvalReport, names: Mapping[str, str]) -> list[Column[_Row]]:
    whole = report.reference.artifact_bytes
    return [
        Column("format", lambda row: _label(report, row, names), is_text=True),
        Column("size", lambda row: format_bytes(row.artifact_bytes), SIZE),
        Column("of baseline", lambda row: f"{row.artifact_bytes / whole:.1%}", "size / the baseline's size", 1),
        Column("bits/weight", figure("bits_per_weight", ".2f"), BITS, 3),
        Column("read/token", figure("bytes_read_per_token", format_bytes), "bytes of weights", 2),
        Column("prompt token", figure("prompt_seconds_per_token", format_duration), _INDICATIVE, 4),
        Column("generated token", figure("generated_seconds_per_token", format_duration), _INDICATIVE, 5),
        Column("peak memory", figure("peak_memory_bytes", format_bytes), "of the process that evaluates", 6),
    ]


def _facts(report: EvalReport, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """What was evaluated and how."""
    used, floor, baseline = report.settings, report.noise_floor, report.reference
    begin = "" if used.begin_token_id is None else f" that begin with token {used.begin_token_id}"
    threads = "a thread per available core" if used.threads is None else f"{used.threads} threads"
    compared = f"compared with {names[baseline.name]} ({format_bytes(baseline.artifact_bytes)}) on the same tokens"
    text = f"{used.text} (sha256 {used.text_sha256[:16]}...); {used.windows} windows of {used.window_tokens} tokens"
    scored = f"scored from position {used.first_scored} on: {used.positions:,} positions"
    facts = [
        ("quality", f"{compared}; llama.cpp on {threads}; measured {format_time(report.started)}"),
        ("text", f"{text}{begin}; {scored}"),
    ]
    if floor is not None:
        said = f"{names[floor.name]} is not quantized: its mean KL of {floor.mean_kl_divergence:.2g} is the engines'"
        facts.append(("noise floor", f"{said} arithmetic; differences across engines that are not larger mean nothing"))
    return facts


def _rows(report: EvalReport) -> list[_Row]:
    """The baseline, the noise floor, the formats, each once."""
    floor = report.noise_floor
    others = [result for result in report.results if floor is None or result.name != floor.name]
    return [report.reference, *([floor] if floor else []), *others]


def _label(report: EvalReport, row: _Row, names: Mapping[str, str]) -> str:
    is_floor = report.noise_floor is not None and row.name == report.noise_floor.name
    role = " (baseline)" if isinstance(row, BaselineQuality) else " (noise floor)" if is_floor else ""
    return names[row.name] + role


def _records(report: EvalReport) -> list[dict[str, object]]:
    """Rows of CSV: the columns of the JSON, those of a format, which has all that the baseline has."""
    floor = [("noise_floor", report.noise_floor)] if report.noise_floor else []
    rows = [("reference", report.reference), *floor, *(("form", result) for result in report.results)]
    machine, started = report.machine, report.started.isoformat()
    shared = {
        **report.settings.model_dump(mode="json"),
        "started": started,
        "cpu": machine.cpu,
        "os": machine.os,
        "command": report.command,
    }
    empty = dict.fromkeys(FormQuality.model_fields)
    return [{"role": role, **empty, **row.model_dump(mode="json"), **shared} for role, row in rows]


def _perplexity(row: _Row) -> str | None:
    form = ".4f" if row.perplexity < 100 else ".1f"
    return figure("perplexity", form, "perplexity", form)(row)
