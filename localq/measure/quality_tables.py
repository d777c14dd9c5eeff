"""An eval report for people and as CSV. Measures nothing, prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from localq.measure.rates import format_duration
from localq.measure.reports import BaselineQuality, EvalReport, FormQuality
from localq.measure.tables import (
    BITS,
    SIZE,
    Column,
    Document,
    Table,
    TableStyle,
    format_time,
    labels,
    machine_facts,
    make_table,
    render,
    render_csv,
    title,
)
from localq.measure.verdict import nearness_lines
from localq.tables import format_bytes

_Value = TypeVar("_Value")
_Row = BaselineQuality | FormQuality


def render_eval(report: EvalReport, style: TableStyle = "text", width: int | None = None) -> str:
    """The baseline, the noise floor and the formats, a row each, without a newline at the end.

    `text` and `md` are rounded for reading; `text` leaves out columns for which `width` has no room. `csv` has full
    precision and the names of the JSON, and an empty field for what is not known.
    """
    if style == "csv":
        return render_csv(_records(report))
    return render(eval_document(report), style, width)


def eval_document(report: EvalReport) -> Document:
    """What an eval report shows."""
    names = labels(_rows(report))
    return Document(
        title=title([report.reference, *report.results], "quality"),
        tables=(quality_table(report, names), _cost_table(report, names)),
        findings=tuple(nearness_lines(report, names)),
        facts=(*machine_facts(report.machine), *quality_facts(report, names)),
        warnings=report.warnings,
        commands=tuple(filter(None, [report.command])),
    )


def quality_table(report: EvalReport, names: Mapping[str, str]) -> Table:
    """How far each format is from the baseline."""

    def of_form(cell: Callable[[FormQuality], str]) -> Callable[[_Row], str | None]:
        return lambda row: cell(row) if isinstance(row, FormQuality) else None

    columns: list[Column[_Row]] = [
        Column("format", lambda row: _label(report, row, names), is_text=True),
        Column(
            "mean KL", of_form(_mean), "mean Kullback-Leibler divergence from the baseline in nats ± standard error"
        ),
        Column("99% KL", of_form(lambda row: f"{row.p99_kl_divergence:.3g}"), "one position in a hundred has more", 4),
        Column("largest KL", of_form(lambda row: f"{row.max_kl_divergence:.3g}"), "of all positions", 6),
        Column(
            "same top", of_form(_same_top), "share of positions with the same most likely token ± standard error", 1
        ),
        Column("perplexity", _perplexity, "exp(mean of -ln probability of the right token) ± standard error", 2),
        Column("ln ratio", of_form(_log_ratio), "ln(perplexity / the baseline's) ± standard error", 3),
        Column("RMS Δp", of_form(_rms), "√(mean squared change of the right token's probability) ± standard error", 5),
    ]
    return make_table("Quality", columns, _rows(report))


def _cost_table(report: EvalReport, names: Mapping[str, str]) -> Table:
    whole = report.reference.artifact_bytes
    columns: list[Column[_Row]] = [
        Column("format", lambda row: _label(report, row, names), is_text=True),
        Column("size", lambda row: format_bytes(row.artifact_bytes), SIZE),
        Column("of baseline", lambda row: f"{row.artifact_bytes / whole:.1%}", "size / the baseline's size", 1),
        Column("bits/weight", lambda row: _known(row.bits_per_weight, "{:.2f}".format), BITS, 3),
        Column("read/token", lambda row: _known(row.bytes_read_per_token, format_bytes), "bytes of weights", 2),
        Column("prompt token", lambda row: format_duration(row.prompt_seconds_per_token), _INDICATIVE, 4),
        Column("generated token", lambda row: _known(row.generated_seconds_per_token, format_duration), _INDICATIVE, 5),
        Column("peak memory", lambda row: format_bytes(row.peak_memory_bytes), "of the process that evaluates", 6),
    ]
    return make_table("Size and cost", columns, _rows(report))


_INDICATIVE = "seconds, roughly; `localq bench` measures speed properly"


def quality_facts(report: EvalReport, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """What was evaluated and how."""
    used, floor, baseline = report.settings, report.noise_floor, report.reference
    begin = "" if used.begin_token_id is None else f" that begin with token {used.begin_token_id}"
    threads = "a thread per available core" if used.threads is None else f"{used.threads} threads"
    facts = [
        (
            "quality",
            f"compared with {names[baseline.name]} ({format_bytes(baseline.artifact_bytes)}) on the same tokens; "
            f"llama.cpp on {threads}; measured {format_time(report.started)}",
        ),
        (
            "text",
            f"{used.text} (sha256 {used.text_sha256[:16]}...); {used.windows} windows of {used.window_tokens} tokens"
            f"{begin}; scored from position {used.first_scored} on: {used.positions:,} positions",
        ),
    ]
    if floor is not None:
        facts.append(
            (
                "noise floor",
                f"{names[floor.name]} is not quantized: its mean KL of {floor.mean_kl_divergence:.2g} is the engines' "
                "arithmetic; differences across engines that are not larger mean nothing",
            )
        )
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
        **report.settings.model_dump(mode="json", exclude={"positions"}),
        "started": started,
        "cpu": machine.cpu,
        "os": machine.os,
        "command": report.command,
    }
    empty = dict.fromkeys(FormQuality.model_fields)
    return [{"role": role, **empty, **row.model_dump(mode="json"), **shared} for role, row in rows]


def _mean(row: FormQuality) -> str:
    return _spread(row.mean_kl_divergence, row.kl_divergence_standard_error, ".3g", ".2g")


def _same_top(row: FormQuality) -> str:
    return _percent(row.same_top_fraction, row.same_top_standard_error)


def _rms(row: FormQuality) -> str:
    return _percent(row.rms_probability_change, row.rms_probability_change_standard_error)


def _log_ratio(row: FormQuality) -> str:
    return _spread(row.log_perplexity_ratio, row.log_perplexity_ratio_standard_error, "+z.4f", ".4f")


def _perplexity(row: _Row) -> str:
    form = ".4f" if row.perplexity < 100 else ".1f"
    return _spread(row.perplexity, row.perplexity_standard_error, form, form)


def _percent(fraction: float, standard_error: float | None) -> str:
    return f"{_spread(100 * fraction, None if standard_error is None else 100 * standard_error, '.2f', '.2f')}%"


def _spread(value: float, standard_error: float | None, form: str, error_form: str) -> str:
    return f"{value:{form}}" + ("" if standard_error is None else f" ± {standard_error:{error_form}}")


def _known(value: _Value | None, text: Callable[[_Value], str]) -> str | None:
    return None if value is None else text(value)
