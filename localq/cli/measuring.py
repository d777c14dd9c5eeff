"""What the verbs that measure share: flags, settings, progress, and the words that repeat a run."""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli.output import say, stderr_is_terminal
from localq.errors import LocalqError, OptionError
from localq.options import LoadOptions

if TYPE_CHECKING:
    from localq.cli.progress import ByteBar
    from localq.measure.reports import BenchReport, BenchSettings
    from localq.measure.worker import Step

PromptTokens = Annotated[
    list[str] | None,
    typer.Option("-p", "--prompt-tokens", metavar="N[,N]", help="Prompt lengths; 0: none (default: 512)."),
]
GeneratedTokens = Annotated[
    list[str] | None,
    typer.Option("-g", "--generated-tokens", metavar="N[,N]", help="Reply lengths; 0: none (default: 128)."),
]
DepthTokens = Annotated[
    list[str] | None,
    typer.Option("-d", "--depth-tokens", metavar="N[,N]", help="Tokens in the cache before each (default: 0)."),
]
Repetitions = Annotated[
    int | None, typer.Option("-r", "--repetitions", metavar="N", help="Counted runs (default: 10).")
]
Baseline = Annotated[
    str | None,
    typer.Option("--baseline", "--reference", metavar="REF", help="What to compare with (default: unquantized GGUF)."),
]
Window = Annotated[
    int | None, typer.Option("--window", metavar="N", help="Tokens that are computed together (default: 512).")
]


def bench_settings(given: Mapping[str, Any]) -> BenchSettings:
    """The settings among a command's arguments, which have the same names; complete and checked."""
    from localq.measure.reports import BenchSettings
    from localq.measure.speed import complete_settings

    chosen = {name: given[name] for name in BenchSettings.model_fields if given.get(name) is not None}
    LoadOptions(**{name: value for name, value in chosen.items() if name in LoadOptions.__dataclass_fields__})
    for flag, name, least in (("-p", "prompt_tokens", 1), ("-g", "generated_tokens", 1), ("-d", "depth_tokens", 0)):
        if name in chosen:
            chosen[name] = token_counts(flag, chosen[name], least)
    return complete_settings(BenchSettings(**chosen))


def token_counts(flag: str, texts: Sequence[str], least: int) -> tuple[int, ...]:
    """The numbers of a flag in their order, each once; those below `least`, a 0 for none, are left out."""
    parts = [part.strip() for text in texts for part in text.split(",")]
    for part in parts:
        if not re.fullmatch(r"[0-9]{1,9}", part):
            raise OptionError(f"{flag} has {part!r}; expected a number of tokens", f"for example: {flag} 512,2048")
    return tuple(dict.fromkeys(number for number in map(int, parts) if number >= least))


def size_words(settings: BenchSettings) -> list[str]:
    """The flags that measure the same tests as often."""
    sizes = {"-p": settings.prompt_tokens, "-g": settings.generated_tokens}
    if settings.depth_tokens != (0,):
        sizes["-d"] = settings.depth_tokens
    words = [word for flag, counts in sizes.items() for word in (flag, ",".join(map(str, counts)) or "0")]
    return [*words, "-r", str(settings.repetitions)]


def chosen_words(chosen: Mapping[str, object]) -> list[str]:
    """Flags with their values, those that were chosen."""
    return [word for flag, value in chosen.items() if value is not None for word in (flag, f"{value}")]


def append_to_history(report: BenchReport, chosen: Path | None, models_dir: Path | None) -> None:
    """Add a run to the file that was chosen, or else to the one in the models folder.

    Raises LocalqError where the chosen one can't be written; for the other one it prints a warning.
    """
    from localq.measure.history import append_report, history_file

    try:
        append_report(report, chosen or history_file(models_dir))
    except LocalqError as error:
        if chosen is not None:
            raise
        say(f"warning: this run is not in the history: {error.message}")


class StepLine:
    """Shows how far a measurement is: on a terminal one line that changes, else a line for each part.

    A context manager, at whose end the line is gone.
    """

    def __init__(self, bar: ByteBar) -> None:
        self._bar = bar
        self._part = ""
        self._started = 0.0

    def show(self, step: Step) -> None:
        """What begins now. The time left is the mean time of the steps before, except the first, for each one left."""
        self._bar.close()  # of the conversions, which come before
        if not stderr_is_terminal():
            if step.part != self._part:
                say(f"{step.number}/{step.of} {step.part}")
            self._part = step.part
            return
        line = f"{step.number}/{step.of} {step.part}: {step.what}"
        if step.number <= 2:  # the first step is another kind of work: it measures the memory, or loads a model
            self._started = time.monotonic()
        else:
            seconds = (time.monotonic() - self._started) / (step.number - 2) * (step.of - step.number + 1)
            line = f"{_time_left(seconds)} left, {line}"
        self._write(line[: shutil.get_terminal_size().columns - 1])

    def _write(self, line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}")  # ECMA-48: erases to the end of the line
        sys.stderr.flush()

    def __enter__(self) -> StepLine:
        return self

    def __exit__(self, *error: object) -> None:
        if self._started:
            self._write("")


def _time_left(seconds: float) -> str:
    """`45 s`, `12 min`, `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
