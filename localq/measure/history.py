"""The history of speeds: a file with the report of a finished `localq bench` on each line, as `--json` writes it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from localq.disk import reason, writing_errors
from localq.errors import LocalqError
from localq.measure.reports import BenchReport, BenchSettings, FormSpeed, Rate
from localq.measure.statistics import FEWEST_FOR_95_PERCENT, NEGLIGIBLE_RATIO
from localq.store.layout import models_folder
from localq.tables import format_bytes

HISTORY_NAME = "bench-history.jsonl"

_ENGINE_LIBRARIES = {"mlx": ("mlx", "mlx-lm"), "gguf": ("llama-cpp-python",)}
# What was chosen is no difference between versions: runs with other choices are kept apart. The context length is none
# of them: by default it follows from the tests.
_CHOICES = ("threads", "kv_cache_type", "flash_attention", "batch_tokens")
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class HistoryRun:
    """One rate of one run, and how it differs from that of the run before."""

    test: str
    started: datetime
    """In UTC."""
    versions: Mapping[str, str]
    """Of localq and of the libraries of the form's engine; `-` where it is not known."""
    rate: Rate
    is_first: bool
    """Whether no run of that test came before."""
    change: float | None
    """Median over the median before, less 1; None where no change is shown."""
    busy: bool
    """Whether other work kept the machine busy."""


@dataclass(frozen=True, slots=True)
class HistoryTable:
    """The runs of one form on one machine with the same choices, by test and time."""

    name: str
    """The form's."""
    machine: str
    choices: str
    """`threads 1, flash_attention True`; empty for the defaults."""
    runs: tuple[HistoryRun, ...]


def history_file(models_dir: Path | None = None) -> Path:
    """Where finished runs are kept unless another file is chosen: in the models folder."""
    return models_folder(models_dir) / HISTORY_NAME


def append_report(report: BenchReport, file: Path) -> None:
    """Add a line at the end, in one write: two runs at once don't mix theirs.

    What a crash left without a line end gets one first; so does what another run is just writing, which leaves an
    empty line. Raises LocalqError when the file can't be written.
    """
    text = json.dumps(report.model_dump(mode="json"), ensure_ascii=False)
    data = text.encode(errors="replace") + b"\n"  # a file name in it may be no UTF-8
    with writing_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            nbytes = os.fstat(descriptor).st_size
            if nbytes and os.pread(descriptor, 1, nbytes - 1) != b"\n":
                data = b"\n" + data
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def read_history(file: Path) -> tuple[list[BenchReport], list[int]]:
    """Every report of a file, in its order, and the numbers of lines, from 1 on, that are none.

    Raises LocalqError where the file can't be read.
    """
    reports, skipped = [], []
    if file.exists() and not file.is_file():
        raise LocalqError(f"can't read {file}: it is no file", "give another one with --jsonl")
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    reports.append(BenchReport.model_validate_json(line))
                except ValidationError:
                    skipped.append(number)
    except OSError as error:
        raise LocalqError(f"can't read {file}: {reason(error)}") from error
    return reports, skipped


def select_forms(reports: Iterable[BenchReport], names: Sequence[str]) -> list[BenchReport]:
    """The reports with the results of some models or forms (`toy-phi`, `toy-phi:mlx-4bit`); of all without names."""
    if not names:
        return list(reports)
    chosen = []
    for report in reports:
        results = tuple(result for result in report.results if result.model in names or result.name in names)
        known = {result.name for result in results}
        pairs = tuple(pair for pair in report.comparisons if {pair.faster, pair.slower} <= known)
        if results:
            chosen.append(report.model_copy(update={"results": results, "comparisons": pairs}))
    return chosen


def history_tables(reports: Iterable[BenchReport]) -> list[HistoryTable]:
    """What changed, by form, machine and choices; sorted by the forms' names."""
    groups: dict[tuple[object, ...], list[tuple[BenchReport, FormSpeed]]] = {}
    for report in sorted(reports, key=lambda report: report.started):
        for result in report.results:
            groups.setdefault(_kind(report, result), []).append((report, result))
    return [_table(groups[kind]) for kind in sorted(groups, key=lambda kind: str(kind[0]))]


def _kind(report: BenchReport, result: FormSpeed) -> tuple[object, ...]:
    """What must be equal for two runs of a test to be compared."""
    machine = report.machine
    # The memory that an operating system reports changes a little with its kernel.
    hardware = machine.cpu, machine.physical_cores, round(machine.memory_bytes / _GIB)
    return result.name, *hardware, *(getattr(report.settings, name) for name in _CHOICES)


def _table(measured: Sequence[tuple[BenchReport, FormSpeed]]) -> HistoryTable:
    report, result = measured[-1]
    machine, settings, defaults = report.machine, report.settings, BenchSettings()
    chosen = {name: getattr(settings, name) for name in _CHOICES}
    other = [f"{name} {value}" for name, value in chosen.items() if value != getattr(defaults, name)]
    return HistoryTable(
        name=result.name,
        machine=f"{machine.cpu}, {machine.physical_cores} cores, {format_bytes(machine.memory_bytes)}",
        choices=", ".join(other),
        runs=tuple(_runs(measured)),
    )


def _runs(measured: Sequence[tuple[BenchReport, FormSpeed]]) -> Iterator[HistoryRun]:
    names = list(dict.fromkeys(test.test for _, result in measured for test in result.tests))
    for name in names:
        rates = [
            (report, test.tokens_per_second)
            for report, result in measured
            for test in result.tests
            if test.test == name
        ]
        for before, (report, rate) in zip([None, *rates], rates, strict=False):
            libraries = ("localq", *_ENGINE_LIBRARIES.get(measured[0][1].format, ()))
            yield HistoryRun(
                test=name,
                started=report.started.astimezone(UTC),
                versions={library: report.machine.versions.get(library, "-") for library in libraries},
                rate=rate,
                is_first=before is None,
                change=_change(before[1], rate) if before else None,
                busy=report.machine.busy,
            )


def _change(before: Rate, now: Rate) -> float | None:
    """Shown where the intervals of the medians lie apart by more than what is negligible, with six samples or more."""
    first, second = before.confidence_interval, now.confidence_interval
    if not first or not second or min(len(before.samples), len(now.samples)) < FEWEST_FOR_95_PERCENT:
        return None
    apart = first[1] * NEGLIGIBLE_RATIO < second[0] or second[1] * NEGLIGIBLE_RATIO < first[0]
    return now.median / before.median - 1 if apart else None
