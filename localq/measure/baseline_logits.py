"""The logits of the baseline in a temporary file, with which the process of every other artifact compares its own.

The file has no name: the operating system deletes it when no process has it open any more. So Ctrl-C, an error or a
killed process leave nothing behind. It is in float32, as engines compute. Float16 takes half of that, but its rounding
alone gives a mean divergence of 7e-9 nats on the toys, and 7e-7 with 128,256 tokens; the engines differ by 3e-12 and
1e-10 there.

`record` and `compare` run in the worker process. Logits are in its memory one chunk at a time and never leave it: the
parent gets a few numbers per position.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localq.disk import ELSEWHERE_HINT, disk_errors
from localq.errors import StoreError
from localq.measure.divergence import Figures, compare_rows, negative_log_likelihoods
from localq.model import Model
from localq.tables import format_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Answer = dict[str, list[float]]
"""Figures of positions by name, and `engine_seconds` of every chunk: the time that the engine needed for it."""

FLOAT32_BYTES = 4

_SPARE_BYTES = 32 << 20
"""Left free on the disk."""


@dataclass(frozen=True, slots=True)
class LogitsFile:
    """The open file, as two processes use it one after the other."""

    descriptor: int
    folder: str
    """On whose disk the file is, for errors."""

    def write(self, first_row: int, logits: NDArray[np.float32]) -> None:
        """Write logits of shape (rows, vocabulary size). Raises StoreError."""
        with disk_errors(Path(self.folder)), open(self.descriptor, "r+b", closefd=False) as stream:
            stream.seek(first_row * logits.shape[1] * FLOAT32_BYTES)
            stream.write(logits.astype("<f4", order="C", copy=False).data)

    def read(self, first_row: int, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Logits of a shape (rows, vocabulary size) that were written before. Raises StoreError."""
        import numpy as np

        rows = np.empty(shape, dtype="<f4")
        with disk_errors(Path(self.folder)), open(self.descriptor, "rb", closefd=False) as stream:
            stream.seek(first_row * shape[1] * FLOAT32_BYTES)
            stream.readinto(rows.data)
        return rows


@contextmanager
def unnamed_file(folder: Path) -> Iterator[LogitsFile]:
    """An empty file in `folder`, or in the system's temporary folder if `folder` is not writable. Raises StoreError."""
    with disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed below)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            folder = Path(tempfile.gettempdir())
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    with file:
        yield LogitsFile(file.fileno(), str(folder))


def require_room(folder: Path, window_bytes: int, windows: int) -> None:
    """Raise StoreError unless the disk of `folder` has room for so many windows of logits."""
    free_bytes = max(0, shutil.disk_usage(folder).free - _SPARE_BYTES)
    if window_bytes * windows <= free_bytes:
        return
    fitting = free_bytes // window_bytes
    less = f"evaluate less text with --windows {fitting}, or " if fitting else ""
    raise StoreError(
        f"the baseline's predictions take {format_bytes(window_bytes * windows)} for {windows} windows; "
        f"{folder} has {format_bytes(free_bytes)} free",
        f"{less}remove something (`localq rm`), or {ELSEWHERE_HINT}",
    )


def record(model: Model, tokens: Sequence[int], first: int, row: int, file: tuple[int, str]) -> Answer:
    """Write the logits of a window, from its position `first` on, to the file from its row `row` on.

    `file` has the fields of `LogitsFile`. Gives `negative_log_likelihood` of each position. Raises StoreError for a
    full disk, EngineError for logits that are not finite.
    """

    def figures(done: int, logits: NDArray[np.float32], right: NDArray[np.intp]) -> Figures:
        LogitsFile(*file).write(row + done, logits)
        return {"negative_log_likelihood": negative_log_likelihoods(logits, right)}

    return _answer(model, tokens, first, figures)


def compare(model: Model, tokens: Sequence[int], first: int, row: int, file: tuple[int, str]) -> Answer:
    """`compare_rows` for the logits of a window and those in the file. Arguments and errors are those of `record`."""

    def figures(done: int, logits: NDArray[np.float32], right: NDArray[np.intp]) -> Figures:
        return compare_rows(LogitsFile(*file).read(row + done, logits.shape), logits, right)

    return _answer(model, tokens, first, figures)


def _answer(model: Model, tokens: Sequence[int], first: int, figures: Callable[..., Figures]) -> Answer:
    """`figures` of every chunk, called with the scored positions before it, its logits, and the tokens after them.

    The last token is computed too, though nothing comes after it: passes have the length of llama-perplexity's, on
    which the last digits depend.
    """
    import numpy as np

    answer: Answer = {"engine_seconds": []}
    after = np.array(tokens[first + 1 :], dtype=np.intp)
    done, started = 0, time.perf_counter()
    for logits in model.engine.logits_in_chunks(tokens, first):
        answer["engine_seconds"].append(time.perf_counter() - started)
        right = after[done : done + len(logits)]
        for name, values in figures(done, logits[: len(right)], right).items():
            answer.setdefault(name, []).extend(values.tolist())
        done, started = done + len(logits), time.perf_counter()
    return answer
