"""What `localq bench` is asked for and what it found: data alone, and its JSON.

Measures nothing. What a rate means is defined by `localq.generation.GenerationStatistics`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from localq.errors import OptionError
from localq.measure.forms import Form
from localq.measure.machine import Machine
from localq.options import MOST_BATCH_TOKENS, KvCacheType

_LONGEST_DELAY_SECONDS = 3600

DECODE_PROMPT_TOKENS = 1
"""Prompt of the runs that measure generation: as llama-bench does, from a context that is all but empty."""


@dataclass(frozen=True, slots=True)
class BenchTest:
    """One rate to measure: of prompt processing or of generation, after a context of `depth_tokens`."""

    prompt_tokens: int = 0
    """0 where generation is measured."""
    generated_tokens: int = 0
    """0 where prompt processing is measured."""
    depth_tokens: int = 0
    """Tokens in the cache before; computing them is not part of the rate."""

    @property
    def name(self) -> str:
        """As llama-bench names it: `pp512`, `tg128 @ d4096`."""
        what = f"pp{self.prompt_tokens}" if self.prompt_tokens else f"tg{self.generated_tokens}"
        return f"{what} @ d{self.depth_tokens}" if self.depth_tokens else what

    @property
    def context_tokens(self) -> int:
        """Tokens that the context must hold: a prompt run draws one token more, a generation run has a prompt."""
        if self.prompt_tokens:
            return self.depth_tokens + self.prompt_tokens + 1
        return self.depth_tokens + DECODE_PROMPT_TOKENS + self.generated_tokens


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What is measured."""

    prompt_tokens: tuple[int, ...] = (512,)
    generated_tokens: tuple[int, ...] = (128,)
    depth_tokens: tuple[int, ...] = (0,)
    repetitions: int = 10
    """Each in fresh processes, warmed up. An even number is fairer: the order of the forms alternates."""
    delay_seconds: float = 0.0
    """Pause before each measurement, for the machine to cool down."""
    context_length: int | None = None
    """Of every form, in tokens; None takes the least that holds the longest test."""
    threads: int | None = None
    """CPU threads for the GGUF forms; None takes the default of `LoadOptions`. MLX chooses its own."""
    kv_cache_type: KvCacheType | None = None
    flash_attention: bool | None = None
    """For the GGUF forms."""
    batch_tokens: int = MOST_BATCH_TOKENS

    def __post_init__(self) -> None:
        for name, least in (("prompt_tokens", 1), ("generated_tokens", 2), ("depth_tokens", 0)):
            # The decode rate counts the tokens after the first one.
            for value in getattr(self, name):
                _require_at_least(least, name, value)
        _require_at_least(1, "repetitions", self.repetitions)
        if not 0 <= self.delay_seconds <= _LONGEST_DELAY_SECONDS:
            raise OptionError(
                f"delay_seconds is {self.delay_seconds}; expected a number between 0 and {_LONGEST_DELAY_SECONDS}"
            )
        if self.threads is not None:
            _require_at_least(1, "threads", self.threads)
        if not self.tests:
            raise OptionError("there is nothing to measure", "give prompt sizes with -p or reply lengths with -g")
        if self.context_length is not None and self.context_length < self.least_context_length:
            longest = max(self.tests, key=lambda test: test.context_tokens)
            raise OptionError(
                f"{longest.name} needs a context of {self.least_context_length} tokens; it has {self.context_length}",
                "measure fewer tokens with -p, -g and -d, or give a larger context with -c",
            )

    @property
    def tests(self) -> tuple[BenchTest, ...]:
        """Every prompt size and every reply length at every depth, each once."""
        tests = (
            test
            for depth in self.depth_tokens
            for test in (
                *(BenchTest(prompt_tokens=count, depth_tokens=depth) for count in self.prompt_tokens),
                *(BenchTest(generated_tokens=count, depth_tokens=depth) for count in self.generated_tokens),
            )
        )
        return tuple(dict.fromkeys(tests))

    @property
    def least_context_length(self) -> int:
        """Tokens that hold the longest test."""
        return max(test.context_tokens for test in self.tests)


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its 95% confidence interval."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """A quantity that was measured repeatedly."""

    median: float
    stdev: float | None
    """Sample standard deviation (n - 1); None for a single sample, whose spread is not known."""
    confidence_interval: tuple[float, float] | None
    """Of the median, 95%, by bootstrap (`localq.measure.speed.intervals`); None for fewer than three samples."""
    samples: tuple[float, ...]
    """In the order in which they were measured."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """How fast generation could be at most, if reading memory were all that it takes."""

    bytes_per_token: int
    """That a token reads: all weights but the rows of an embedding table and of experts that it does not use, and the
    keys and values of the context in the middle of the run."""
    tokens_per_second: float
    """Memory bandwidth of this machine, measured in the same run, over `bytes_per_token`."""
    share: float
    """The median rate over that."""


@dataclass(frozen=True, slots=True)
class TestResult:
    """What was measured of one form in one test."""

    __test__ = False  # no test of pytest's

    test: BenchTest
    tokens_per_second: Summary
    limit: MemoryLimit | None
    """None for prompt processing, which computing power limits."""
    joules_per_token: float | None
    """Median, of the processors as a whole while they worked; None where the machine does not tell its energy."""


@dataclass(frozen=True, slots=True)
class FormResult:
    """What was measured of one form."""

    form: Form
    load_seconds: float
    """Median, with the files in the operating system's cache, as far as they fit."""
    cold_load_seconds: float | None
    """Once, with the files taken out of that cache before; None where the operating system does not offer that."""
    time_to_first_token_seconds: float | None
    """Median, of the first prompt size at the first depth; None where no prompt is measured."""
    tests: tuple[TestResult, ...]
    peak_memory_bytes: int

    def of_kind(self, kind: str) -> TestResult | None:
        """The first test of prompt processing (`pp`) or of generation (`tg`)."""
        return next((result for result in self.tests if result.test.name.startswith(kind)), None)

    def to_json(self) -> dict[str, Any]:
        """The keys of the first prompt size and reply length stand by themselves; `tests` has all of them."""
        prompt, generated = self.of_kind("pp"), self.of_kind("tg")
        return {
            "model": self.form.model,
            "recipe": self.form.recipe,
            "bits_per_weight": self.form.bits_per_weight,
            "artifact_bytes": self.form.artifact_bytes,
            "load_seconds": self.load_seconds,
            "cold_load_seconds": self.cold_load_seconds,
            "time_to_first_token_seconds": self.time_to_first_token_seconds,
            "prompt_tokens_per_second": asdict(prompt.tokens_per_second) if prompt else None,
            "generated_tokens_per_second": asdict(generated.tokens_per_second) if generated else None,
            "peak_memory_bytes": self.peak_memory_bytes,
            "tests": [_test_json(result) for result in self.tests],
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two forms in one test."""

    test: BenchTest
    faster: str
    """Name of the form that is ahead by the ratio; `slower` is the other one's."""
    slower: str
    ratio: Interval
    """Of their rates, faster over slower, turn by turn (`localq.measure.speed.intervals`); at least 1."""
    differs: bool
    """Whether the interval lies beyond what is too small to matter; else no winner is to be named."""


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The outcome, with all that is needed to repeat it."""

    machine: Machine
    settings: BenchSettings
    """As used: `context_length` is a number. `threads` stays None where none was given: llama.cpp's number may then
    differ from form to form."""
    results: tuple[FormResult, ...]
    comparisons: tuple[Comparison, ...]
    """Of every two forms in every test, in the order of the results; none for a single repetition."""
    memory_bandwidth_bytes_per_second: float
    """Best of several rounds, before and after the measurements."""
    warnings: tuple[str, ...]
    """What makes the figures less sure: other work, a drift, a falling clock."""
    started: str
    """ISO 8601, in UTC."""

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            "machine": asdict(self.machine),
            "settings": {**asdict(self.settings), "decode_prompt_tokens": DECODE_PROMPT_TOKENS},
            "started": self.started,
            "memory_bandwidth_bytes_per_second": self.memory_bandwidth_bytes_per_second,
            "warnings": list(self.warnings),
            "results": [result.to_json() for result in self.results],
            "comparisons": [_comparison_json(comparison) for comparison in self.comparisons],
        }


def _test_json(result: TestResult) -> dict[str, Any]:
    return {
        "test": result.test.name,
        **asdict(result.test),
        "tokens_per_second": asdict(result.tokens_per_second),
        "limit": asdict(result.limit) if result.limit else None,
        "joules_per_token": result.joules_per_token,
    }


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "test": comparison.test.name,
        "faster": comparison.faster,
        "slower": comparison.slower,
        "ratio": asdict(comparison.ratio),
        "differs": comparison.differs,
    }


def _require_at_least(least: int, name: str, value: float) -> None:
    if value < least:
        raise OptionError(f"{name} is {value}; expected at least {least}")
