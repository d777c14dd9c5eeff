"""The verb: how fast forms of models run on this machine.

Forms take turns test by test, so that what is compared is measured next to each other: a machine that slows down or
gets other work treats all of them alike. Every form has a process of its own, and a fresh one for every repetition:
where a process happens to lie in memory makes it 1 to 4% faster or slower for as long as it lives, so that the same
form in two processes would seem to be two. What the numbers mean is defined by
`localq.generation.GenerationStatistics`. Knows neither tables nor terminals.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from localq.errors import OptionError
from localq.measure.bandwidth import memory_bandwidth_bytes_per_second
from localq.measure.forms import Form
from localq.measure.machine import Machine, describe_machine
from localq.measure.process import WorkerProcess
from localq.measure.speed.drift import ClockWatch, busy_warnings, drift_warnings, few_warnings, spread_warnings
from localq.measure.speed.intervals import compare, summarize
from localq.measure.speed.limits import bytes_per_token
from localq.measure.speed.page_cache import drop_from_page_cache, form_files
from localq.measure.speed.results import (
    BenchReport,
    BenchSettings,
    BenchTest,
    Comparison,
    FormResult,
    MemoryLimit,
    TestResult,
)
from localq.options import LoadOptions

Announce = Callable[[str], None]
"""Told before each step what comes."""


def bench_forms(forms: Sequence[Form], settings: BenchSettings, on_step: Announce | None = None) -> BenchReport:
    """Measure forms that are on disk, by turns.

    Raises OptionError when the forms can't be in memory together, EngineError naming the form whose process
    ended, and LocalqError for what a form's process could not do, such as a context that is too long.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    machine = describe_machine()
    _check_memory(forms, machine)
    settings = replace(settings, context_length=settings.context_length or settings.least_context_length)
    announce = _numbered(2 + len(forms) * (1 + settings.repetitions * (1 + len(settings.tests))), on_step)
    announce("memory bandwidth")
    bandwidth = memory_bandwidth_bytes_per_second()
    measured = [_Measured(form, settings) for form in forms]
    for each in measured:
        announce(f"{each.form.name}: load from disk")
        each.load_from_disk()
    clock = ClockWatch()
    for repetition in range(settings.repetitions):
        _repeat(measured, settings.tests, repetition, announce, clock)
    announce("memory bandwidth")
    bandwidth = max(bandwidth, memory_bandwidth_bytes_per_second())
    results = tuple(each.result(bandwidth) for each in measured)
    rates = [result.tokens_per_second for each in results for result in each.tests]
    return BenchReport(
        machine=machine,
        settings=settings,
        results=results,
        comparisons=tuple(_comparisons(measured, settings)),
        memory_bandwidth_bytes_per_second=bandwidth,
        warnings=(
            *busy_warnings(machine),
            *few_warnings(settings.repetitions),
            *spread_warnings(rates),
            *drift_warnings([rate.samples for rate in rates]),
            *clock.warnings(),
        ),
        started=started,
    )


def _numbered(total: int, on_step: Announce | None) -> Announce:
    numbers = itertools.count(1)
    return lambda step: on_step(f"{next(numbers)}/{total} {step}") if on_step is not None else None


def _check_memory(forms: Sequence[Form], machine: Machine) -> None:
    needed_bytes = sum(form.artifact_bytes for form in forms)
    if len(forms) > 1 and needed_bytes > machine.memory_bytes:
        raise OptionError(
            f"these {len(forms)} forms have {needed_bytes / 1e9:.1f} GB together, this machine's memory "
            f"{machine.memory_bytes / 1e9:.1f} GB: taking turns would measure the disk",
            "measure fewer of them at once",
        )


class _Measured:
    """A form, and what was measured of it so far."""

    def __init__(self, form: Form, settings: BenchSettings) -> None:
        self.form = form
        self._settings = settings
        self._options = _load_options(form, settings)
        self._cold_load_seconds: float | None = None
        self._load_seconds: list[float] = []
        self._peak_memory_bytes: list[int] = []
        self._answers: dict[BenchTest, list[dict[str, Any]]] = {test: [] for test in settings.tests}

    def load_from_disk(self) -> None:
        """In a process that ends with it; does nothing where the files can't be taken out of the cache."""
        if drop_from_page_cache(form_files(self.form.path)):
            with WorkerProcess(self.form.name) as worker:
                self._cold_load_seconds = self._load(worker)

    def load(self, worker: WorkerProcess) -> None:
        self._load_seconds.append(self._load(worker))

    def measure(self, worker: WorkerProcess, test: BenchTest, run: int) -> None:
        time.sleep(self._settings.delay_seconds)
        self._answers[test].append(worker.ask("measure", run=run, **asdict(test)))

    def finish(self, worker: WorkerProcess) -> None:
        self._peak_memory_bytes.append(worker.ask("peak_memory")["peak_memory_bytes"])

    def rates(self, test: BenchTest) -> list[float]:
        """By repetition."""
        return [answer["tokens_per_second"] for answer in self._answers[test]]

    def result(self, bandwidth: float) -> FormResult:
        prompts = [test for test in self._settings.tests if test.prompt_tokens]
        first_token = [answer["time_to_first_token_seconds"] for test in prompts[:1] for answer in self._answers[test]]
        return FormResult(
            form=self.form,
            load_seconds=statistics.median(self._load_seconds),
            cold_load_seconds=self._cold_load_seconds,
            time_to_first_token_seconds=statistics.median(first_token) if first_token else None,
            tests=tuple(self._test_result(test, bandwidth) for test in self._settings.tests),
            peak_memory_bytes=max(self._peak_memory_bytes),
        )

    def _load(self, worker: WorkerProcess) -> float:
        answer = worker.ask("load", path=str(self.form.path), **asdict(self._options))
        return float(answer["load_seconds"])

    def _test_result(self, test: BenchTest, bandwidth: float) -> TestResult:
        rate = summarize(self.rates(test))
        joules = [answer["joules_per_token"] for answer in self._answers[test]]
        return TestResult(
            test=test,
            tokens_per_second=rate,
            limit=self._limit(test, bandwidth, rate.median) if test.generated_tokens else None,
            joules_per_token=None if None in joules else statistics.median(joules),
        )

    def _limit(self, test: BenchTest, bandwidth: float, rate: float) -> MemoryLimit | None:
        read_bytes = bytes_per_token(self.form, self._options, test.depth_tokens + test.generated_tokens // 2)
        if read_bytes is None:
            return None
        return MemoryLimit(read_bytes, bandwidth / read_bytes, rate * read_bytes / bandwidth)


def _repeat(
    measured: Sequence[_Measured],
    tests: Sequence[BenchTest],
    repetition: int,
    announce: Announce,
    clock: ClockWatch,
) -> None:
    """Every test of every form once, in fresh processes that are all there at the same time."""
    # Every second time the other way round: whoever comes later has the warmer machine.
    order = list(reversed(measured)) if repetition % 2 else measured
    with ExitStack() as stack:
        workers = []
        for each in order:
            announce(f"{each.form.name}: load, repetition {repetition + 1}")
            workers.append(stack.enter_context(WorkerProcess(each.form.name)))
            each.load(workers[-1])
        for index, test in enumerate(tests):
            for each, worker in zip(order, workers, strict=True):
                announce(f"{each.form.name}: {test.name}, repetition {repetition + 1}")
                each.measure(worker, test, run=repetition * len(tests) + index)
                clock.note()
        for each, worker in zip(order, workers, strict=True):
            each.finish(worker)


def _load_options(form: Form, settings: BenchSettings) -> LoadOptions:
    """Of the settings, what the form's engine has a choice of."""
    is_gguf = form.format == "gguf"
    return LoadOptions(
        context_length=settings.context_length,
        threads=settings.threads if is_gguf else None,
        kv_cache_type=settings.kv_cache_type,
        flash_attention=settings.flash_attention if is_gguf else None,
        batch_tokens=settings.batch_tokens,
    )


def _comparisons(measured: Sequence[_Measured], settings: BenchSettings) -> Iterator[Comparison]:
    if settings.repetitions < 2:
        return
    for one, other in itertools.combinations(measured, 2):
        for test in settings.tests:
            yield compare(test, (one.form.name, one.rates(test)), (other.form.name, other.rates(test)))
