"""The tables of a page: what was measured, rounded for reading. Knows neither HTML nor Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from localq.measure.page.measurements import FormRow, Measurements
from localq.measure.quality.divergence import Divergence
from localq.measure.quality.results import EvalResult, ReferenceResult
from localq.measure.speed.results import BenchTest, MemoryLimit, TestResult
from localq.tables import format_bytes, format_coarsely, format_duration, format_range, format_rate

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure, and in smaller letters what belongs to it: its spread, or of which test it is."""

    text: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.note}".rstrip()


NONE = Cell("-")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; the first column names what a row is about."""

    caption: str
    header: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]


def main_table(measurements: Measurements) -> Table:
    """A row for the reference and for every form; columns that nothing is known for are left out."""
    prompt, generation = measurements.first_test("pp"), measurements.first_test("tg")
    columns: list[tuple[Cell, Callable[[FormRow], Cell]]] = [
        (Cell("form"), lambda row: _name(measurements, row)),
        (Cell("size"), lambda row: Cell(format_bytes(row.form.artifact_bytes))),
        (Cell("bits/weight"), lambda row: _or_none(row.form.bits_per_weight, lambda bits: Cell(f"{bits:.2f}"))),
        (_of_test("prompt t/s", prompt), lambda row: _rate(row.in_test(prompt))),
        (_of_test("generation t/s", generation), lambda row: _rate(row.in_test(generation))),
        (Cell("of memory limit"), lambda row: _limit(row.in_test(generation))),
        (_of_test("first token", prompt), _first_token),
        (Cell("load"), _load),
        (
            Cell("peak memory"),
            lambda row: _or_none(row.speed, lambda speed: Cell(format_bytes(speed.peak_memory_bytes))),
        ),
        (Cell("mean KL", "divergence"), lambda row: _divergence(row, _mean)),
        (Cell("same top"), lambda row: _divergence(row, _same_top)),
        (Cell("perplexity", "change"), _perplexity_change),
    ]
    rows = [tuple(cell(row) for _, cell in columns) for row in measurements.rows]
    return _table("Every form in numbers", [header for header, _ in columns], rows)


def tests_table(measurements: Measurements) -> Table:
    """A row for every form and test, with intervals."""
    header = [Cell("form"), Cell("test"), Cell("t/s"), Cell("95% interval")]
    header += [Cell("of memory limit"), Cell("J/token")]
    rows = [
        (
            _name(measurements, row),
            Cell(result.test.name),
            Cell(str(_rate(result))),  # in one line: these rows are many
            _or_none(result.tokens_per_second.confidence_interval, lambda ends: Cell(format_range(*ends))),
            Cell(str(_limit(result))),
            _or_none(result.joules_per_token, lambda joules: Cell(f"{joules:.3g}")),
        )
        for row in measurements.rows
        if row.speed is not None
        for result in row.speed.tests
    ]
    return _table("Speed in every test", header, rows)


def quality_table(measurements: Measurements) -> Table | None:
    """A row for the engines' own difference and for every form; None where nothing was evaluated."""
    report = measurements.evaluation
    if report is None:
        return None
    header = [Cell("form"), Cell("median KL"), Cell("99% KL"), Cell("largest KL"), Cell("same top")]
    header += [Cell("perplexity"), Cell("ln ratio"), Cell("RMS Δp"), Cell("read/token")]
    floor = [report.noise_floor] if report.noise_floor else []
    forms = [result for result in report.results if all(result.form.name != other.form.name for other in floor)]
    rows = [_quality_cells(measurements, result, is_floor=result in floor) for result in (*floor, *forms)]
    return _table("Distance from the reference", header, rows)


def _quality_cells(measurements: Measurements, result: EvalResult, is_floor: bool) -> tuple[Cell, ...]:
    found = result.divergence
    return (
        Cell(measurements.label(result.form), "noise floor" if is_floor else ""),
        Cell(f"{found.median_kl_divergence:.3g}"),
        Cell(f"{found.p99_kl_divergence:.3g}"),
        Cell(f"{found.max_kl_divergence:.3g}"),
        _same_top(found),
        Cell(
            _perplexity(found.perplexity), _spread(found.perplexity_standard_error, _perplexity_form(found.perplexity))
        ),
        Cell(f"{found.log_perplexity_ratio:+z.4f}", _spread(found.log_perplexity_ratio_standard_error, "{:.4f}")),
        Cell(f"{found.rms_probability_change:.2%}", _spread(found.rms_probability_change_standard_error, "{:.2%}")),
        _or_none(result.bytes_read_per_token, lambda count: Cell(format_bytes(count))),
    )


def _table(caption: str, header: Sequence[Cell], rows: Sequence[tuple[Cell, ...]]) -> Table:
    """Without the columns that nothing is known for."""
    kept = [number for number in range(len(header)) if any(row[number] != NONE for row in rows)]
    return Table(
        caption,
        tuple(header[number] for number in kept),
        tuple(tuple(row[number] for number in kept) for row in rows),
    )


def _name(measurements: Measurements, row: FormRow) -> Cell:
    is_reference = isinstance(row.quality, ReferenceResult)
    return Cell(measurements.label(row.form), "reference" if is_reference else "")


def _of_test(name: str, test: BenchTest | None) -> Cell:
    return Cell(name, test.name if test else "")


def _rate(result: TestResult | None) -> Cell:
    if result is None:
        return NONE
    rate = result.tokens_per_second
    spread = "" if rate.stdev is None else f"± {format_rate(rate.stdev, like=rate.median)}"
    return Cell(format_rate(rate.median), spread)


def _limit(result: TestResult | None) -> Cell:
    def cell(limit: MemoryLimit) -> Cell:
        return Cell(f"{limit.share:.0%}", f"of {format_coarsely(limit.tokens_per_second)}")

    return _or_none(result.limit if result else None, cell)


def _first_token(row: FormRow) -> Cell:
    return _or_none(row.speed.time_to_first_token_seconds if row.speed else None, lambda s: Cell(format_duration(s)))


def _load(row: FormRow) -> Cell:
    if row.speed is None:
        return NONE
    cold = row.speed.cold_load_seconds
    return Cell(format_duration(row.speed.load_seconds), "" if cold is None else f"({format_duration(cold)} cold)")


def _divergence(row: FormRow, cell: Callable[[Divergence], Cell]) -> Cell:
    return cell(row.quality.divergence) if isinstance(row.quality, EvalResult) else NONE


def _mean(found: Divergence) -> Cell:
    return Cell(f"{found.mean_kl_divergence:.3g}", _spread(found.kl_divergence_standard_error, "{:.2g}"))


def _same_top(found: Divergence) -> Cell:
    return Cell(f"{found.same_top_fraction:.2%}", _spread(found.same_top_standard_error, "{:.2%}"))


def _perplexity_change(row: FormRow) -> Cell:
    match row.quality:
        case EvalResult(divergence=found):
            change = found.perplexity / found.reference_perplexity - 1
            return Cell(_perplexity(found.perplexity), f"({change:+z.2%})")
        case ReferenceResult(perplexity=perplexity):
            return Cell(_perplexity(perplexity.value))
        case None:
            return NONE


def _perplexity(value: float) -> str:
    return _perplexity_form(value).format(value)


def _perplexity_form(value: float) -> str:
    """As `localq eval` has it."""
    return "{:.4f}" if value < 100 else "{:.1f}"


def _spread(standard_error: float | None, form: str) -> str:
    return "" if standard_error is None else f"± {form.format(standard_error)}"


def _or_none(value: _Value | None, cell: Callable[[_Value], Cell]) -> Cell:
    return NONE if value is None else cell(value)
