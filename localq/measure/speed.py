"""How fast forms of models run on this machine. Knows neither tables nor terminals.

Forms take turns test by test, so that what is compared is measured at almost the same time: a machine that slows down
or gets other work treats all of them alike. Each form has a process of its own, and a new one for every repetition:
where a process happens to lie in memory makes it 1 to 4% faster or slower for as long as it lives, so that the same
form in two processes would seem to be two.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from statistics import median
from typing import NamedTuple

from localq.errors import OptionError
from localq.hardware import memory_bandwidth_bytes_per_second
from localq.measure.forms import Form, context_limits, drop_from_cache, form_files
from localq.measure.limits import bytes_per_token
from localq.measure.machine import describe_machine
from localq.measure.reports import (
    DECODE_PROMPT_TOKENS,
    BenchReport,
    BenchSettings,
    BenchTest,
    FormSpeed,
    Machine,
    MemoryLimit,
    SpeedComparison,
    TestResult,
)
from localq.measure.speed_worker import measure
from localq.measure.statistics import ratio_of_medians, shows_difference, summarize
from localq.measure.worker import OnStep, Step, WorkerProcess
from localq.options import LoadOptions, SingleReplyKeywords

_LONGEST_DELAY_SECONDS = 3600
_LESS_HINT = "measure fewer tokens with -p, -g and -d"
_WIDE_INTERVAL = 0.2


def bench_tests(settings: BenchSettings) -> tuple[BenchTest, ...]:
    """Every prompt size and every reply length at every depth, each once."""
    tests = (
        test
        for depth in settings.depth_tokens
        for test in (
            *(BenchTest(prompt_tokens=count, depth_tokens=depth) for count in settings.prompt_tokens),
            *(BenchTest(generated_tokens=count, depth_tokens=depth) for count in settings.generated_tokens),
        )
    )
    return tuple(dict.fromkeys(tests))


def complete_settings(settings: BenchSettings) -> BenchSettings:
    """With the context length that the tests need, where none is chosen. Raises OptionError for what can't be."""
    # The rate of a reply counts the tokens after the first one.
    for name, least in (("prompt_tokens", 1), ("generated_tokens", 2), ("depth_tokens", 0), ("repetitions", 1)):
        value = getattr(settings, name)
        for count in value if isinstance(value, tuple) else (value,):
            if count < least:
                raise OptionError(f"{name} is {count}; expected at least {least}")
    if not 0 <= settings.delay_seconds <= _LONGEST_DELAY_SECONDS:
        expected = f"a number between 0 and {_LONGEST_DELAY_SECONDS}"
        raise OptionError(f"delay_seconds is {settings.delay_seconds}; expected {expected}")
    tests = bench_tests(settings)
    if not tests:
        raise OptionError("there is nothing to measure", "give prompt sizes with -p or reply lengths with -g")
    longest = max(tests, key=lambda test: test.context_tokens)
    chosen = settings.context_length or longest.context_tokens
    if chosen < longest.context_tokens:
        raise OptionError(
            f"{longest.test} needs a context of {longest.context_tokens} tokens; it has {chosen}",
            f"{_LESS_HINT}, or give a larger context with -c",
        )
    return settings.model_copy(update={"context_length": chosen})


def bench_forms(forms: Sequence[Form], settings: BenchSettings, on_step: OnStep = lambda step: None) -> BenchReport:
    """Measure forms that are on disk, by turns.

    After Ctrl-C, what complete repetitions measured comes back, marked as partial; without one KeyboardInterrupt is
    raised. Raises OptionError where a form has too short a context or the forms can't be in memory together, before
    anything is measured; EngineError with the form whose process ended, and LocalqError for what failed in it.
    """
    settings = complete_settings(settings)
    machine, started = describe_machine(), datetime.now(UTC).replace(microsecond=0)
    _check_forms(forms, settings, machine)
    bench, partial = _Bench(forms, settings, on_step), False
    bandwidth = bench.bandwidth("before")
    bench.load_from_disk()
    try:
        for repetition in range(settings.repetitions):
            bench.repeat(repetition)
        bandwidth = max(bandwidth, bench.bandwidth("after"))
    except KeyboardInterrupt:
        if not bench.turns:
            raise
        partial = True
    results = tuple(bench.result(form, bandwidth) for form in forms)
    return BenchReport(
        machine=machine,
        settings=settings,
        started=started,
        memory_bandwidth_bytes_per_second=bandwidth,
        warnings=tuple(_warnings(machine, results)),
        partial=partial,
        results=results,
        comparisons=tuple(_comparisons(results)),
    )


def _check_forms(forms: Sequence[Form], settings: BenchSettings, machine: Machine) -> None:
    for form in forms:
        try:
            context_limits(form).chosen(settings.context_length)
        except OptionError as error:
            raise OptionError(f"{form.name}: {error.message}", f"{_LESS_HINT}, or a smaller context with -c") from error
    needed_bytes = sum(form.artifact_bytes for form in forms)
    if len(forms) > 1 and needed_bytes > machine.memory_bytes:
        raise OptionError(
            f"these {len(forms)} artifacts have {needed_bytes / 1e9:.1f} GB together, this machine's memory "
            f"{machine.memory_bytes / 1e9:.1f} GB: taking turns would measure the disk",
            "measure fewer of them at once",
        )


class _Turn(NamedTuple):
    """What one process measured."""

    worker: WorkerProcess
    load_seconds: float
    runs: dict[BenchTest, tuple[float, float]]
    """Tokens per second, and seconds until the first token."""


class _Bench:
    """The forms, and what was measured of them so far."""

    def __init__(self, forms: Sequence[Form], settings: BenchSettings, on_step: OnStep) -> None:
        self.turns: list[dict[Form, _Turn]] = []
        """Complete repetitions."""
        self._forms = forms
        self._settings = settings
        self._tests = bench_tests(settings)
        self._on_step = on_step
        self._steps = itertools.count(1)
        self._cold_load_seconds: dict[Form, float] = {}

    def bandwidth(self, when: str) -> float:
        self._announce(f"{when} the repetitions", "memory bandwidth")
        return memory_bandwidth_bytes_per_second()

    def load_from_disk(self) -> None:
        """Each form whose files can be taken out of the cache, in a process that ends with it."""
        for form in self._forms:
            self._announce("before the repetitions", f"{form.name}, load from disk")
            if drop_from_cache(form_files(form.path)):
                with WorkerProcess(form, self._options(form)) as worker:
                    self._cold_load_seconds[form] = worker.load().load_seconds

    def repeat(self, repetition: int) -> None:
        """Every test of every form once, in new processes that are all there at the same time."""
        part = f"repetition {repetition + 1} of {self._settings.repetitions}"
        # Every second time in reverse: whoever comes later has the warmer machine.
        forms = list(reversed(self._forms)) if repetition % 2 else self._forms
        turns: dict[Form, _Turn] = {}
        with ExitStack() as stack:
            for form in forms:
                self._announce(part, f"{form.name}, load")
                worker = stack.enter_context(WorkerProcess(form, self._options(form)))
                turns[form] = _Turn(worker, worker.load().load_seconds, {})
            for number, test in enumerate(self._tests, start=repetition * len(self._tests)):
                for form, turn in turns.items():
                    self._announce(part, f"{form.name}, {test.test}")
                    time.sleep(self._settings.delay_seconds)
                    turn.runs[test] = self._run(turn.worker, test, number)
        self.turns.append(turns)

    def result(self, form: Form, bandwidth: float) -> FormSpeed:
        turns = [turn[form] for turn in self.turns]
        prompts = [test for test in self._tests if test.prompt_tokens]
        first_token = [turn.runs[test][1] for test in prompts[:1] for turn in turns]
        return FormSpeed(
            **form.facts(),
            load_seconds=median(turn.load_seconds for turn in turns),
            cold_load_seconds=self._cold_load_seconds.get(form),
            time_to_first_token_seconds=median(first_token) if first_token else None,
            peak_memory_bytes=max(turn.worker.peak_memory_bytes for turn in turns),
            tests=tuple(
                self._test_result(form, test, [turn.runs[test][0] for turn in turns], bandwidth) for test in self._tests
            ),
        )

    def _announce(self, part: str, what: str) -> None:
        total = 2 + len(self._forms) * (1 + self._settings.repetitions * (1 + len(self._tests)))
        self._on_step(Step(part, what, next(self._steps), total))

    def _run(self, worker: WorkerProcess, test: BenchTest, number: int) -> tuple[float, float]:
        prompt_tokens, generated_tokens = test.prompt_tokens or DECODE_PROMPT_TOKENS, test.generated_tokens or 1
        return worker.run(
            measure, number, test.depth_tokens, prompt_tokens, generated_tokens, self._settings.batch_tokens
        )

    def _options(self, form: Form) -> LoadOptions:
        """Of the settings, what the form's engine has a choice of."""
        chosen = {name: getattr(self._settings, name) for name in SingleReplyKeywords.__annotations__}
        return LoadOptions(**chosen | ({} if form.format == "gguf" else {"threads": None, "flash_attention": None}))

    def _test_result(self, form: Form, test: BenchTest, rates: list[float], bandwidth: float) -> TestResult:
        rate, limit = summarize(rates), None
        if test.generated_tokens:
            # The context in the middle of the run.
            read = bytes_per_token(form, self._options(form), test.depth_tokens + test.generated_tokens // 2)
            if read is not None:
                share = rate.median * read / bandwidth
                limit = MemoryLimit(bytes_per_token=read, tokens_per_second=bandwidth / read, share=share)
        sizes = {name: getattr(test, name) for name in BenchTest.model_fields}
        return TestResult(**sizes, tokens_per_second=rate, limit=limit)


def _comparisons(results: Sequence[FormSpeed]) -> Iterator[SpeedComparison]:
    for pair in itertools.combinations(results, 2):
        for index, test in enumerate(pair[0].tests):
            rates = {form.name: form.tests[index].tokens_per_second for form in pair}
            faster, slower = sorted(rates, key=lambda name: -rates[name].median)
            if len(rates[faster].samples) > 1:
                ratio = ratio_of_medians(rates[faster].samples, rates[slower].samples)
                yield SpeedComparison(
                    test=test.test, faster=faster, slower=slower, ratio=ratio, differs=shows_difference(ratio)
                )


def _warnings(machine: Machine, results: Sequence[FormSpeed]) -> Iterator[str]:
    """What makes the figures less sure."""
    rates = [test.tokens_per_second for result in results for test in result.tests]
    if machine.busy:
        yield f"other work kept {machine.busy_cores:.1f} cores busy at the start: close it and measure again"
    ends = [(rate.confidence_interval or (0.0, 0.0), rate.median) for rate in rates]
    wide = sum(high - low > _WIDE_INTERVAL * middle for (low, high), middle in ends)
    if wide:
        yield (
            f"{wide} of {len(rates)} rates have intervals wider than {_WIDE_INTERVAL:.0%} of themselves: close other "
            "programs and measure again, or longer (-r, -g); a pause (--delay) keeps a machine cool"
        )
