"""The history that `localq bench` keeps: a finished run goes in, `--history` shows it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from localq.cli.output import emit, emit_json, say
from localq.errors import LocalqError, ModelNotFoundError

if TYPE_CHECKING:
    from localq.measure.speed.results import BenchReport

_MOST_LINES_NAMED = 8


def append_run(report: BenchReport, command: str, chosen: Path | None, models_dir: Path | None) -> None:
    """Add a run to the file that was chosen, or else to the one in the models folder.

    Raises LocalqError where the chosen one can't be written; the other one costs a warning.
    """
    from localq.measure.speed.history import append_entries, history_entries, history_file

    entries = history_entries(report, command)
    if chosen is not None:
        append_entries(chosen, entries)
        return
    try:
        append_entries(history_file(models_dir), entries)
    except LocalqError as error:
        say(f"warning: this run is not in the history: {error.message}")


def show_history(refs: Sequence[str], chosen: Path | None, models_dir: Path | None, json: bool) -> None:
    """Write the entries of some models and forms, or of all of them, as tables or JSON."""
    from localq.measure.speed.history import entry_name, history_file, read_history, select_entries
    from localq.measure.speed.history_table import render_history

    file = chosen or history_file(models_dir)
    if chosen is None and not file.exists():
        say(f"no history in {file.parent} yet; it begins with a run, for example: localq bench toy-llama")
        entries = []
    else:
        history = read_history(file)
        _tell_damaged(file, history.damaged_lines)
        for ref in refs:
            if not select_entries(history.entries, [ref]):
                names = ", ".join(sorted({entry_name(entry) for entry in history.entries}))
                raise ModelNotFoundError(f"{file} has no run of {ref}", f"it has: {names}" if names else "")
        entries = select_entries(history.entries, refs)
    if json:
        emit_json(entries)
    elif entries:
        emit(render_history(entries))


def _tell_damaged(file: Path, lines: Sequence[int]) -> None:
    if lines:
        named = ", ".join(map(str, lines[:_MOST_LINES_NAMED])) + (" ..." if len(lines) > _MOST_LINES_NAMED else "")
        say(f"warning: {file}: left out what is damaged, line {named}")
