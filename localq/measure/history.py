"""The history of speeds: a file with the report of a finished `localq bench` on each line, as `--json` writes it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from localq.disk import reason, writing_errors
from localq.errors import LocalqError
from localq.measure.data import Rate
from localq.measure.reports import BenchReport, BenchSettings, FormSpeed, TestResult
from localq.measure.statistics import FEWEST_FOR_95_PERCENT, NEGLIGIBLE_RATIO
from localq.store.layout import models_folder

HISTORY_NAME = "bench-history.jsonl"
_GIB = 1 << 30

# What was chosen is no difference between versions: runs with other choices are kept apart. The context length is none
# of them: by default it follows from the tests.
_CHOICES = ("threads", "kv_cache_type", "flash_attention", "batch_tokens")


@dataclass(frozen=True, slots=True)
class HistoryRun:
    """A test of a form in one report, and its rate in the run before."""

    report: BenchReport
    form: FormSpeed
    test: TestResult
    before: Rate | None
    """None for the first run of the test."""

    @property
    def change(self) -> float | None:
        """Median over the median before, less 1; None where no change is shown.

        It is where the intervals of the medians lie apart by more than what is negligible, with six samples or more.
        """
        if self.before is None:
            return None
        before, now = self.before, self.test.tokens_per_second
        first, second = before.confidence_interval, now.confidence_interval
        if not first or not second or min(len(before.samples), len(now.samples)) < FEWEST_FOR_95_PERCENT:
            return None
        apart = first[1] * NEGLIGIBLE_RATIO < second[0] or second[1] * NEGLIGIBLE_RATIO < first[0]
        return now.median / before.median - 1 if apart else None


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
        with file.open("a+b", buffering=0) as opened:
            nbytes = opened.seek(0, os.SEEK_END)
            if nbytes and os.pread(opened.fileno(), 1, nbytes - 1) != b"\n":
                data = b"\n" + data
            if opened.write(data) != len(data):
                raise LocalqError(f"can't write {file}: {os.strerror(errno.ENOSPC)}")


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
        pairs = tuple(item for item in report.comparisons if known.issuperset(item.pair))
        if results:
            chosen.append(report.model_copy(update={"results": results, "comparisons": pairs}))
    return chosen


def history_runs(reports: Iterable[BenchReport]) -> dict[str, list[HistoryRun]]:
    """The runs of each form on each machine with the same choices, under a heading; by test and time."""
    groups: dict[tuple[str, str, str], dict[str, list[HistoryRun]]] = {}
    for report in sorted(reports, key=lambda report: report.started):
        for form in report.results:
            tests = groups.setdefault((form.name, _machine(report), _choices(report)), {})
            for test in form.tests:
                runs = tests.setdefault(test.test, [])
                runs.append(HistoryRun(report, form, test, runs[-1].test.tokens_per_second if runs else None))
    return {
        "; ".join(filter(None, kind)): [run for runs in groups[kind].values() for run in runs]
        for kind in sorted(groups, key=lambda kind: kind[0])
    }


def _machine(report: BenchReport) -> str:
    machine = report.machine
    # Rounded: the memory that a system reports changes a little with its kernel.
    return f"{machine.cpu}, {machine.physical_cores} cores, {round(machine.memory_bytes / _GIB)} GiB"


def _choices(report: BenchReport) -> str:
    chosen, defaults = report.settings, BenchSettings()
    names = [name for name in _CHOICES if getattr(chosen, name) != getattr(defaults, name)]
    return ", ".join(f"{name} {getattr(chosen, name)}" for name in names)
