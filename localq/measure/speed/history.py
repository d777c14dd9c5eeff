"""The history of measurements: a file with a JSON object per line, one for each form and test of a finished run.

Appends and reads; what the entries show is for `localq.measure.speed.history_table`.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localq.disk import writing_errors
from localq.errors import LocalqError
from localq.measure.speed.results import BenchReport, FormResult, TestResult
from localq.store.layout import models_folder

HISTORY_NAME = "bench-history.jsonl"

Entry = dict[str, Any]
"""One line; the keys are those of `history_entries`."""


@dataclass(frozen=True, slots=True)
class History:
    """What a file holds."""

    entries: tuple[Entry, ...]
    damaged_lines: tuple[int, ...]
    """Numbers, from 1, of lines that are no entries."""


def history_file(models_dir: Path | None = None) -> Path:
    """Where finished runs are kept unless another file is chosen: in the models folder."""
    return models_folder(models_dir) / HISTORY_NAME


def history_entries(report: BenchReport, command: str) -> list[Entry]:
    """An entry for each form and test of a report; `command` is the line that repeats it."""
    return [_entry(report, result, item, command) for result in report.results for item in result.tests]


def append_entries(file: Path, entries: Iterable[Entry]) -> None:
    """Add lines at the end, all in one write: two runs at once don't mix theirs.

    What a crash left without a line end gets one first; so does what another run is just writing, which leaves an
    empty line. Raises LocalqError when the file can't be written.
    """
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    data = text.encode(errors="backslashreplace")  # a file name may hold what is no UTF-8
    with writing_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            nbytes = os.fstat(descriptor).st_size
            if nbytes and os.pread(descriptor, 1, nbytes - 1) != b"\n":
                data = b"\n" + data
            if os.write(descriptor, data) != len(data):
                raise LocalqError(f"can't write {file}: {os.strerror(errno.ENOSPC)}")
        finally:
            os.close(descriptor)


def read_history(file: Path) -> History:
    """Every entry of a file, in its order; empty lines mean nothing. Raises LocalqError where it can't be read."""
    entries, damaged = [], []
    if file.exists() and not file.is_file():
        raise LocalqError(f"can't read {file}: it is no file", "give another one with --jsonl")
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                entry = _parse(line)
                if entry is not None:
                    entries.append(entry)
                elif line.strip():
                    damaged.append(number)
    except OSError as error:
        raise LocalqError(f"can't read {file}: {error.strerror or error}") from error
    return History(tuple(entries), tuple(damaged))


def select_entries(entries: Iterable[Entry], names: Sequence[str]) -> list[Entry]:
    """Those of models or forms by their names, `toy-phi` or `toy-phi:mlx-4bit`; all of them without names."""
    return [entry for entry in entries if not names or entry["model"] in names or entry_name(entry) in names]


def entry_name(entry: Entry) -> str:
    """The form's name, as references are written."""
    return f"{entry['model']}:{entry['recipe']}"


def entry_time(entry: Entry) -> datetime:
    """When the run started, in UTC, which a time without a zone is taken for."""
    time = datetime.fromisoformat(entry["started"])
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _entry(report: BenchReport, result: FormResult, item: TestResult, command: str) -> Entry:
    machine = asdict(report.machine)
    return {
        "started": report.started,
        "model": result.form.model,
        "recipe": result.form.recipe,
        "test": item.test.name,
        **asdict(item.test),
        "tokens_per_second": asdict(item.tokens_per_second),
        "load_seconds": result.load_seconds,
        "peak_memory_bytes": result.peak_memory_bytes,
        "artifact_bytes": result.form.artifact_bytes,
        "bits_per_weight": result.form.bits_per_weight,
        "versions": machine.pop("versions"),
        "machine": machine,
        "settings": asdict(report.settings),
        "warnings": list(report.warnings),
        "command": command,
    }


def _parse(line: bytes) -> Entry | None:
    """The entry of a line; None where it is damaged."""
    try:
        value = json.loads(line)
        return value if _is_entry(value) and entry_time(value) else None
    except (ValueError, OverflowError, RecursionError):
        return None


def _is_entry(value: object) -> bool:
    """Whether the keys are there that a table needs, with values of their kinds."""
    match value:
        case {
            "started": str(),
            "model": str(),
            "recipe": str(),
            "test": str(),
            "tokens_per_second": {"median": median, "stdev": stdev, "confidence_interval": ends},
            "versions": dict(versions),
            "machine": {"cpu": str(), "physical_cores": cores, "memory_bytes": nbytes},
            "settings": dict(),
        }:
            low, high = ends if isinstance(ends, list) else (ends, ends)
            return (
                all(_is_number(number) and number > 0 for number in (median, cores, nbytes))
                and all(number is None or _is_number(number) for number in (stdev, low, high))
                and all(isinstance(version, str) for version in versions.values())
            )
    return False


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
