"""The verb: how fast forms of models run on this machine.

Every form gets a process of its own; the repetitions of different forms take turns (A B A B), so that a
machine that slows down or gets other work treats all of them alike. What the numbers mean is defined by
`localq.generation.GenerationStatistics`. Knows neither tables nor terminals.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from localq.errors import OptionError
from localq.measure.forms import Form
from localq.measure.machine import Machine, describe_machine
from localq.measure.process import WorkerProcess

DECODE_PROMPT_TOKENS = 1
"""Prompt of the runs that measure generation: as llama-bench does, from a context that is all but empty."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What is measured."""

    prompt_tokens: int = 512
    generated_tokens: int = 128
    repetitions: int = 5
    """Counted ones; one more comes first and warms up."""
    context_length: int | None = None
    """Of every form, in tokens; None takes the least that holds both the prompt run and the generation run."""
    threads: int | None = None
    """CPU threads for the GGUF forms; None takes the default of `LoadOptions`. MLX chooses its own."""

    def __post_init__(self) -> None:
        _require_at_least(1, "prompt_tokens", self.prompt_tokens)
        # The decode rate counts the tokens after the first one.
        _require_at_least(2, "generated_tokens", self.generated_tokens)
        _require_at_least(1, "repetitions", self.repetitions)
        if self.threads is not None:
            _require_at_least(1, "threads", self.threads)
        if self.context_length is not None and self.context_length < self.least_context_length:
            raise OptionError(
                f"{self.prompt_tokens} prompt tokens and {self.generated_tokens} generated ones need a context of "
                f"{self.least_context_length} tokens; it has {self.context_length}",
                "measure fewer tokens with -p and -g, or give a larger context with -c",
            )

    @property
    def least_context_length(self) -> int:
        """Tokens that hold the prompt run (the prompt and one more) and the generation run."""
        return max(self.prompt_tokens + 1, DECODE_PROMPT_TOKENS + self.generated_tokens)


@dataclass(frozen=True, slots=True)
class Summary:
    """A quantity that was measured repeatedly."""

    median: float
    stdev: float | None
    """Sample standard deviation (n - 1); None for a single sample, whose spread is not known."""
    samples: tuple[float, ...]
    """In the order in which they were measured."""


@dataclass(frozen=True, slots=True)
class FormResult:
    """What was measured of one form."""

    form: Form
    load_seconds: float
    time_to_first_token_seconds: float
    """Median, of the prompt of `prompt_tokens`."""
    prompt_tokens_per_second: Summary
    generated_tokens_per_second: Summary
    peak_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.form.model,
            "recipe": self.form.recipe,
            "bits_per_weight": self.form.bits_per_weight,
            "artifact_bytes": self.form.artifact_bytes,
            "load_seconds": self.load_seconds,
            "time_to_first_token_seconds": self.time_to_first_token_seconds,
            "prompt_tokens_per_second": asdict(self.prompt_tokens_per_second),
            "generated_tokens_per_second": asdict(self.generated_tokens_per_second),
            "peak_memory_bytes": self.peak_memory_bytes,
        }


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The outcome, with all that is needed to repeat it."""

    machine: Machine
    settings: BenchSettings
    """As used: `context_length` is a number. `threads` stays None where none was given: llama.cpp's number may then
    differ from form to form."""
    results: tuple[FormResult, ...]

    def to_json(self) -> dict[str, Any]:
        """`machine`, `settings` and `results`, for `json.dumps`."""
        return {
            "machine": asdict(self.machine),
            "settings": {**asdict(self.settings), "decode_prompt_tokens": DECODE_PROMPT_TOKENS},
            "results": [result.to_json() for result in self.results],
        }


def summarize(samples: Sequence[float]) -> Summary:
    """Median and sample standard deviation."""
    return Summary(
        median=statistics.median(samples),
        stdev=statistics.stdev(samples) if len(samples) > 1 else None,
        samples=tuple(samples),
    )


def bench_forms(
    forms: Sequence[Form], settings: BenchSettings, on_step: Callable[[str], None] | None = None
) -> BenchReport:
    """Measure forms that are on disk, by turns. `on_step` is told before each step what comes.

    Raises OptionError when the forms can't be in memory together, EngineError naming the form whose process
    ended, and LocalqError for what a form's process could not do, such as a context that is too long.
    """
    machine = describe_machine()
    _check_memory(forms, machine)
    settings = replace(settings, context_length=settings.context_length or settings.least_context_length)
    numbers = itertools.count(1)
    total = len(forms) * (1 + 1 + settings.repetitions)  # load, warm up, measure

    def announce(form: Form, activity: str) -> None:
        if on_step is not None:
            on_step(f"{next(numbers)}/{total} {form.name}: {activity}")

    with ExitStack() as stack:
        measured: list[_Measured] = []
        for form in forms:
            announce(form, "load")
            worker = stack.enter_context(WorkerProcess(form.name))
            measured.append(_Measured.load(form, worker, settings))
        for repetition in range(settings.repetitions + 1):
            for each in measured:
                announce(each.form, f"repetition {repetition}" if repetition else "warm up")
                each.repeat(repetition, settings)
        results = tuple(each.result() for each in measured)
    return BenchReport(machine, settings, results)


def _check_memory(forms: Sequence[Form], machine: Machine) -> None:
    needed_bytes = sum(form.artifact_bytes for form in forms)
    if len(forms) > 1 and needed_bytes > machine.memory_bytes:
        raise OptionError(
            f"these {len(forms)} forms have {needed_bytes / 1e9:.1f} GB together, this machine's memory "
            f"{machine.memory_bytes / 1e9:.1f} GB: taking turns would measure the disk",
            "measure fewer of them at once",
        )


@dataclass(slots=True)
class _Measured:
    """A form, its process, and the samples so far; repetition 0 warms up and leaves none."""

    form: Form
    worker: WorkerProcess
    load_seconds: float
    first_token_seconds: list[float] = field(default_factory=list)
    prompt_rates: list[float] = field(default_factory=list)
    decode_rates: list[float] = field(default_factory=list)

    @classmethod
    def load(cls, form: Form, worker: WorkerProcess, settings: BenchSettings) -> _Measured:
        threads = settings.threads if form.format == "gguf" else None
        answer = worker.ask("load", path=str(form.path), context_length=settings.context_length, threads=threads)
        return cls(form, worker, answer["load_seconds"])

    def repeat(self, repetition: int, settings: BenchSettings) -> None:
        run = 2 * repetition
        prompt = self.worker.ask("measure", run=run, prompt_tokens=settings.prompt_tokens, generated_tokens=1)
        decode = self.worker.ask(
            "measure",
            run=run + 1,
            prompt_tokens=DECODE_PROMPT_TOKENS,
            generated_tokens=settings.generated_tokens,
        )
        if repetition == 0:
            return
        self.first_token_seconds.append(prompt["time_to_first_token_seconds"])
        self.prompt_rates.append(prompt["prompt_tokens_per_second"])
        self.decode_rates.append(decode["generated_tokens_per_second"])

    def result(self) -> FormResult:
        return FormResult(
            form=self.form,
            load_seconds=self.load_seconds,
            time_to_first_token_seconds=statistics.median(self.first_token_seconds),
            prompt_tokens_per_second=summarize(self.prompt_rates),
            generated_tokens_per_second=summarize(self.decode_rates),
            peak_memory_bytes=self.worker.ask("peak_memory")["peak_memory_bytes"],
        )


def _require_at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise OptionError(f"{name} is {value}; expected at least {least}")
