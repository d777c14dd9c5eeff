"""What stands on a page, in its order: the same for HTML and Markdown, which it knows nothing of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from localq.measure.machine import Machine
from localq.measure.page.definitions import definitions
from localq.measure.page.figures import Table, main_table, quality_table, tests_table
from localq.measure.page.measurements import Measurements
from localq.measure.page.recommendation import recommend
from localq.measure.quality.report import nearness_lines
from localq.measure.quality.results import EvalReport
from localq.measure.speed.report import settings_text
from localq.measure.speed.verdicts import comparison_lines
from localq.tables import format_bytes


@dataclass(frozen=True, slots=True)
class Page:
    """The page but for its plots."""

    title: str
    subtitle: str
    """Where and when it was measured."""
    recommendation: str
    warnings: tuple[str, ...]
    table: Table
    comparisons: tuple[str, ...]
    """Sentences."""
    details: tuple[Table, ...]
    noise_floor: str
    """A sentence on the engines' own difference; empty where it was not measured."""
    facts: tuple[tuple[str, str], ...]
    """What was measured and how: name and text."""
    commands: tuple[str, ...]
    """Lines that repeat it."""
    definitions: tuple[tuple[str, str], ...]
    """Of the columns: name and text."""


def page_of(measurements: Measurements, commands: Sequence[str]) -> Page:
    """The page of some measurements; `commands` are the lines that repeat them."""
    report, machine = measurements.evaluation, measurements.bench.machine
    table = main_table(measurements)
    quality = quality_table(measurements)
    details = (tests_table(measurements), *([quality] if quality else []))
    lines = [*comparison_lines(measurements.bench), *(nearness_lines(report) if report else [])]
    return Page(
        title=f"{', '.join(measurements.models)}: {'speed and quality' if report else 'speed'} by form",
        subtitle=f"{machine.cpu}, {_date(measurements.bench.started)}",
        recommendation=recommend(measurements),
        warnings=tuple(map(measurements.relabelled, measurements.warnings)),
        table=table,
        comparisons=tuple(map(measurements.relabelled, lines)),
        details=details,
        noise_floor=_noise_floor(measurements, report) if report else "",
        facts=(*_facts(measurements), *_random_weights(commands)),
        commands=tuple(filter(None, commands)),
        definitions=definitions((table, *details)),
    )


def _noise_floor(measurements: Measurements, report: EvalReport) -> str:
    floor = report.noise_floor
    if floor is None:
        return ""
    return (
        f"Noise floor: {measurements.label(floor.form)} is not quantized and differs from "
        f"{measurements.label(report.reference.form)} by a mean KL divergence of "
        f"{floor.divergence.mean_kl_divergence:.2g}, which is the engines' arithmetic; differences across engines that "
        "are not larger mean nothing."
    )


def _facts(measurements: Measurements) -> tuple[tuple[str, str], ...]:
    bench, report = measurements.bench, measurements.evaluation
    bandwidth = format_bytes(bench.memory_bandwidth_bytes_per_second)
    facts = [
        ("machine", _machine(bench.machine)),
        ("versions", _versions(bench.machine)),
        ("speed", f"{settings_text(bench.settings)}; forms take turns; measured {_date(bench.started)}"),
        ("memory limit", f"{bandwidth}/s, measured in the same run, over the bytes that a token reads"),
    ]
    if report is not None:
        facts += [("quality", _quality(measurements, report)), ("text", _text(report))]
        if _machine(report.machine) != _machine(bench.machine):
            facts.append(("machine of quality", _machine(report.machine)))
        if _versions(report.machine) != _versions(bench.machine):
            facts.append(("versions of quality", _versions(report.machine)))
    return tuple(facts)


def _random_weights(commands: Sequence[str]) -> list[tuple[str, str]]:
    """What `localq bench --shape` measured is no trained model."""
    if not any("--shape" in command.split() for command in commands):
        return []
    return [("weights", "random, in the shape of the model: size, speed and memory are the same as with its own")]


def _machine(machine: Machine) -> str:
    metal = "Metal" if machine.metal else "no Metal"
    return f"{machine.cpu}, {machine.physical_cores} cores, {format_bytes(machine.memory_bytes)}, {metal}; {machine.os}"


def _versions(machine: Machine) -> str:
    named = [f"{name} {version}" for name, version in machine.versions.items()]
    return ", ".join([*named, f"Python {machine.python}"])


def _quality(measurements: Measurements, report: EvalReport) -> str:
    threads = "a thread per available core" if report.threads is None else f"{report.threads} threads"
    return (
        f"compared with {measurements.label(report.reference.form)} on the same tokens; llama.cpp on {threads}; "
        f"measured {_date(report.started)}"
    )


def _text(report: EvalReport) -> str:
    used = report.text
    begin = "" if used.begin_token_id is None else f" that begin with token {used.begin_token_id}"
    return (
        f"{used.text} (sha256 {used.text_sha256}); {used.windows} windows of {used.window_tokens} tokens{begin}, "
        f"scored from position {used.first_scored} on: {used.positions:,} positions"
    )


def _date(started: str) -> str:
    """`21 November 2026, 04:05 UTC`; the months' names don't depend on the user's language."""
    time = datetime.fromisoformat(started)
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return f"{time.day} {_MONTHS[time.month - 1]} {time:%Y, %H:%M} UTC"


_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
