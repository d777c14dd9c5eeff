"""Progress of pulls and conversions: a bar on a terminal, single lines elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from localq.cli.output import say, stderr_is_terminal
from localq.conversion.convert import ConversionListener
from localq.recipes import Recipe
from localq.store.manifest import Artifact
from localq.tables import format_bytes


class ByteBar:
    """One bar on stderr with bytes, rate and time left; nothing where stderr is no terminal. A context manager.

    Without `counts_bytes` it shows how much is done in per cent.
    """

    def __init__(self, *, counts_bytes: bool = True) -> None:
        self._counts_bytes = counts_bytes
        self._progress: Any = None
        self._task: Any = None
        self._title = ""

    def update(self, title: str, done_bytes: int, total_bytes: int) -> None:
        """Show a state; a new title starts a new bar."""
        if not stderr_is_terminal():
            return
        if self._progress is None:
            self._progress = _new_progress(self._counts_bytes)
            self._progress.start()
        if title != self._title:
            self._title = title
            self._task = self._progress.add_task(title, total=total_bytes)
        self._progress.update(self._task, completed=done_bytes, total=total_bytes)

    def close(self) -> None:
        """Stop; the bar stays on the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def __enter__(self) -> ByteBar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


_NOTES = _Notes()  # one, however many listeners there are


class TerminalListener(ConversionListener):
    """Prints on stderr what a pull or a conversion does."""

    def __init__(self, bar: ByteBar, *, tell_reused: bool) -> None:
        self._bar = bar
        self._tell_reused = tell_reused
        self._begun: set[str] = set()
        download_log = logging.getLogger("localq.download")
        download_log.setLevel(logging.INFO)
        download_log.addHandler(_NOTES)

    def on_download(self, done_bytes: int, total_bytes: int) -> None:
        """Bytes of a pull; when it begins with all of them, it has nothing to do."""
        if done_bytes == total_bytes and "download" not in self._begun:
            self._begin("download", f"nothing to download: {format_bytes(total_bytes)} are here, with the right hashes")
            return
        self._begin("download", f"pulling {format_bytes(total_bytes)} into the Hugging Face cache")
        self._bar.update("pull", done_bytes, total_bytes)

    def on_reused(self, artifact: Artifact) -> None:
        """An earlier conversion is used."""
        if self._tell_reused:
            say(f"{artifact.name} is there already, made {artifact.manifest.created}: {artifact.path}")

    def on_outdated(self, artifact: Artifact) -> None:
        """The checkpoint changed, or its calibration."""
        what = "or its calibration " if artifact.recipe.calibrated else ""
        say(f"{artifact.manifest.source} {what}changed since {artifact.name} was made: making it again")

    def on_caveat(self, caveat: str) -> None:
        """Where a runtime differs from the model's reference."""
        say(f"note: {caveat}")

    def on_progress(self, recipes: Sequence[Recipe], done_bytes: int, total_bytes: int) -> None:
        """Bytes of a conversion."""
        names = ", ".join(recipe.name for recipe in recipes)
        self._begin(names, f"making {names} from {format_bytes(total_bytes)} of weights")
        self._bar.update(recipes[0].name if len(recipes) == 1 else f"{len(recipes)} formats", done_bytes, total_bytes)

    def on_wait(self, recipe: Recipe) -> None:
        """Another process has the lock."""
        say(f"waiting: another localq is making {recipe.name}")

    def _begin(self, key: str, line: str) -> None:
        if key not in self._begun:
            self._begun.add(key)
            say(line)


def _new_progress(counts_bytes: bool) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount = (DownloadColumn(), TransferSpeedColumn()) if counts_bytes else (TaskProgressColumn(),)
    return Progress(
        TextColumn("{task.description:<14}"), BarColumn(), *amount, TimeRemainingColumn(), console=Console(stderr=True)
    )
