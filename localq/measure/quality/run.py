"""Forms computed one after the other, each in a process of its own: the reference, and what is compared with it.

The reference's rows are in a file without a name, which the operating system forgets with the last process that has it
open: nothing is left behind by Ctrl-C, by an error, or by a process that is killed.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from localq.disk import ELSEWHERE_HINT, disk_errors
from localq.errors import OptionError, StoreError
from localq.measure.forms import Form
from localq.measure.process import WorkerProcess
from localq.measure.quality.divergence import Positions
from localq.measure.quality.reference_logits import row_type
from localq.measure.quality.results import GENERATED_TOKENS, Cost
from localq.measure.quality.windows import WindowSettings
from localq.measure.quality.worker import POSITION_FIELDS
from localq.tables import format_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SPARE_BYTES = 32 << 20
"""That a disk keeps free."""


@dataclass(frozen=True, slots=True)
class EvalStep:
    """What comes next."""

    form: str
    """Its name."""
    number: int
    """Of the form, from 1 on; the reference is the first."""
    forms: int
    window: int
    """That is computed now, from 1 on."""
    windows: int


OnStep = Callable[[EvalStep], None]


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What every form computes."""

    windows: Sequence[Sequence[int]]
    """Token ids."""
    cut: WindowSettings
    threads: int | None
    form_count: int
    on_step: OnStep


@dataclass(frozen=True, slots=True)
class ComputedReference:
    """What the reference foretold, but for the rows in the file."""

    negative_log_likelihood: NDArray[np.float64]
    """-ln P(right token) of each scored position."""
    cost: Cost


@dataclass(frozen=True, slots=True)
class ComputedForm:
    """What a form foretold, compared with the reference."""

    positions: Positions
    cost: Cost


@contextmanager
def quality_run(plan: RunPlan, folder: Path) -> Iterator[QualityRun]:
    """Opens the file on the disk of `folder`, which is made where it is not there. Raises StoreError.

    Where `folder` may not be written, the file lies where the system has its temporary ones.
    """
    rows, folder = _open_rows(folder)
    with rows:
        yield QualityRun(plan, folder, rows.fileno())


def _open_rows(folder: Path) -> tuple[IO[bytes], Path]:
    """The file, which has no name, and the folder on whose disk it is."""
    with disk_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(dir=folder), folder
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
    folder = Path(tempfile.gettempdir())
    with disk_errors(folder):
        return tempfile.TemporaryFile(dir=folder), folder


@dataclass(slots=True)
class QualityRun:
    """The passes of one evaluation: `record` first, then `compare` as often as there are forms."""

    plan: RunPlan
    folder: Path
    descriptor: int
    _vocabulary_size: int = 0
    _done: int = 0

    def record(self, form: Form) -> ComputedReference:
        """Compute the reference. Raises StoreError where the disk has no room for it, else as `compare`."""
        import numpy as np

        answers, cost = self._computed(form, "record", self._require_room)
        return ComputedReference(np.concatenate([answer["negative_log_likelihood"] for answer in answers]), cost)

    def compare(self, form: Form) -> ComputedForm:
        """Compute a form and compare it with the reference.

        Raises OptionError for a vocabulary of another size, EngineError naming the form whose process ended, and
        LocalqError for what a form's process could not do.
        """
        import numpy as np

        answers, cost = self._computed(form, "compare", lambda size: self._require_same_vocabulary(form, size))
        fields = (np.concatenate([answer[name] for answer in answers]) for name in POSITION_FIELDS)
        return ComputedForm(Positions(*fields), cost)

    def _computed(
        self, form: Form, command: str, check: Callable[[int], None]
    ) -> tuple[list[dict[str, NDArray[np.float64]]], Cost]:
        """Every window's answer, and what the form cost; `check` is told the vocabulary's size."""
        import numpy as np

        plan = self.plan
        self._done += 1
        with WorkerProcess(form.name, "localq.measure.quality.worker", (self.descriptor,)) as worker:
            loaded = worker.ask(
                "load",
                path=str(form.path),
                context_length=plan.cut.window_tokens,
                threads=plan.threads if form.format == "gguf" else None,
                descriptor=self.descriptor,
                folder=str(self.folder),
            )
            check(loaded["vocabulary_size"])
            answers = []
            for index, tokens in enumerate(plan.windows):
                plan.on_step(EvalStep(form.name, self._done, plan.form_count, index + 1, len(plan.windows)))
                row = index * plan.cut.scored_positions
                answer = worker.ask(command, tokens=tokens, first=plan.cut.first, row=row)
                answers.append({name: np.asarray(value) for name, value in answer.items()})
            seconds = [float(answer["engine_seconds"]) for answer in answers]
            return answers, self._cost(worker, loaded["load_seconds"], seconds)

    def _cost(self, worker: WorkerProcess, load_seconds: float, engine_seconds: Sequence[float]) -> Cost:
        size = self.plan.cut.window_tokens
        counted = engine_seconds[1:] or engine_seconds
        most = min(GENERATED_TOKENS, size - 1)
        reply = worker.ask("generate", tokens=self.plan.windows[0][:1], generated_tokens=most)
        rate = reply["generated_tokens_per_second"]
        return Cost(
            load_seconds=load_seconds,
            prompt_seconds_per_token=sum(counted) / (len(counted) * size),
            generated_seconds_per_token=1 / rate if rate else None,
            peak_memory_bytes=worker.ask("peak_memory")["peak_memory_bytes"],
        )

    def _require_room(self, vocabulary_size: int) -> None:
        self._vocabulary_size = vocabulary_size
        window_bytes = self.plan.cut.scored_positions * row_type(vocabulary_size).itemsize
        needed_bytes = window_bytes * len(self.plan.windows)
        free_bytes = shutil.disk_usage(self.folder).free - _SPARE_BYTES
        if needed_bytes <= free_bytes:
            return
        fitting = max(free_bytes, 0) // window_bytes
        less = f"evaluate less text with --windows {fitting}, or " if fitting else ""
        raise StoreError(
            f"what the reference foretells takes {format_bytes(needed_bytes)} for {len(self.plan.windows)} windows; "
            f"{self.folder} has {format_bytes(max(free_bytes, 0))} free",
            f"{less}remove something (`localq rm`), or {ELSEWHERE_HINT}",
        )

    def _require_same_vocabulary(self, form: Form, vocabulary_size: int) -> None:
        if vocabulary_size != self._vocabulary_size:
            raise OptionError(
                f"{form.name} gives {vocabulary_size:,} logits, the reference {self._vocabulary_size:,}",
                "compare forms of one model, made from the same checkpoint",
            )
