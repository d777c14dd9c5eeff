"""What `localq bench` and `localq eval` found: data alone. One JSON shape, which is written and read back.

`report.model_dump(mode="json")` is what `--json` writes, a line of the history, and a saved report; `load_report`
reads one. Keys that a newer version added are ignored. What a rate means is defined by
`localq.generation.GenerationStatistics`, what a figure of quality means by `localq.measure.divergence`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import AwareDatetime, Field, ValidationError, computed_field, model_validator

from localq.disk import reason
from localq.errors import OptionError
from localq.measure.data import Data, Interval, Rate, Shown
from localq.options import KvCacheType

if TYPE_CHECKING:
    from localq.measure.tables import Document

DECODE_PROMPT_TOKENS = 1
"""Prompt of the runs that measure generation: as llama-bench does, from an almost empty context."""

LARGEST_NOISE_FLOOR = 1e-3
"""Mean divergence between the engines' unquantized formats, in nats, above which they don't compute the same model.
8-bit quantization costs that much (llama.cpp's table for an 8B Llama 3 has 0.0014 for Q8_0, half of it from storing
logits in 16 bits); bfloat16 against float16 costs 0.000025. The share of same top tokens does not count: where two
tokens are almost equally likely, it falls without anything being wrong."""

_MOST_BYTES = 64 << 20
"""A report of a hundred forms has a hundredth of that."""


class Machine(Data):
    """What a stranger needs to know to compare figures with their own."""

    cpu: str
    physical_cores: int
    logical_cores: int
    memory_bytes: int
    os: str
    python: str
    versions: dict[str, str]
    """Of localq and of the engines' libraries that are installed."""
    metal: bool
    """Whether MLX can compute on a GPU through Metal."""
    busy_cores: float
    """Logical cores that other work kept busy, over half a second before the measurement."""
    busy: bool
    """Whether that is more than half of the physical cores: figures will be too low and will vary."""


class FormFacts(Data):
    """A form, as results name it."""

    model: str
    recipe: str
    bits_per_weight: float | None
    """None where localq did not make the form."""
    artifact_bytes: int

    @property
    def name(self) -> str:
        """As references are written: `toy-phi:mlx-4bit`."""
        return f"{self.model}:{self.recipe}"

    @property
    def format(self) -> str:
        """`mlx` or `gguf`."""
        return self.recipe.partition("-")[0]

    def facts(self) -> dict[str, Any]:
        """These four fields alone, for a result."""
        return {name: getattr(self, name) for name in FormFacts.model_fields}


class BenchTest(Data):
    """One rate to measure: of prompt processing or of generation, after a context of `depth_tokens`."""

    prompt_tokens: int = 0
    """0 where generation is measured."""
    generated_tokens: int = 0
    """0 where prompt processing is measured."""
    depth_tokens: int = 0
    """Tokens in the cache before; computing them is not part of the rate."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def test(self) -> str:
        """As llama-bench names it: `pp512`, `tg128 @ d4096`."""
        what = f"pp{self.prompt_tokens}" if self.prompt_tokens else f"tg{self.generated_tokens}"
        return f"{what} @ d{self.depth_tokens}" if self.depth_tokens else what

    @property
    def context_tokens(self) -> int:
        """Tokens that the context must hold: a prompt run draws one token more, a generation run has a prompt."""
        if self.prompt_tokens:
            return self.depth_tokens + self.prompt_tokens + 1
        return self.depth_tokens + DECODE_PROMPT_TOKENS + self.generated_tokens


class MemoryLimit(Data):
    """How fast generation could be at most, if reading memory were all that it takes."""

    bytes_per_token: int
    """That a token reads: the weights that it uses, and the keys and values of its context."""
    tokens_per_second: float
    """Memory bandwidth of this machine, measured in the same run, over `bytes_per_token`."""
    share: float
    """The median rate over that."""


class TestResult(BenchTest):
    """What was measured of one form in one test."""

    __test__ = False  # no test of pytest's

    tokens_per_second: Rate
    limit: MemoryLimit | None
    """None for prompt processing, which computing power limits."""


class FormSpeed(FormFacts):
    """What was measured of one form."""

    load_seconds: float
    """Median, with the files in the operating system's cache as far as they fit; includes importing the library."""
    cold_load_seconds: float | None
    """Once, with the files taken out of that cache before; None where the operating system does not offer that."""
    time_to_first_token_seconds: float | None
    """Median, of the first prompt size at the first depth; None where no prompt is measured."""
    peak_memory_bytes: int
    tests: Annotated[tuple[TestResult, ...], Field(min_length=1)]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def prompt_tokens_per_second(self) -> Rate | None:
        """Of the first prompt size."""
        return next((test.tokens_per_second for test in self.tests if test.prompt_tokens), None)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def generated_tokens_per_second(self) -> Rate | None:
        """Of the first reply length."""
        return next((test.tokens_per_second for test in self.tests if test.generated_tokens), None)


class SpeedComparison(Data):
    """Two forms in one test."""

    test: str
    faster: str
    """Name of the form whose median is higher; `slower` is the other one's."""
    slower: str
    ratio: Interval
    """Of their medians, faster over slower: what the table gives."""
    differs: bool
    """Whether the interval lies beyond what is too small to matter; else no winner is to be named."""

    @property
    def pair(self) -> tuple[str, str]:
        """The better one first."""
        return self.faster, self.slower


class BenchSettings(Data):
    """How speed is measured.

    prompt_tokens: Lengths of the prompts whose processing is measured.
    generated_tokens: Lengths of the replies whose generation is measured.
    depth_tokens: Tokens in the context before each of them.
    repetitions: Each in fresh processes, warmed up. An even number is fairer: the order of the formats alternates.
    delay_seconds: Pause before each measurement, for the machine to cool down.
    context_length: Of every format, in tokens; None takes the least that holds the longest test.
    threads: CPU threads for GGUF; None takes the default of `LoadOptions`. MLX chooses its own.
    kv_cache_type: As in `LoadOptions`.
    flash_attention: As in `LoadOptions`, for GGUF.
    batch_tokens: Prompt tokens computed in one pass.
    """

    prompt_tokens: tuple[int, ...] = (512,)
    generated_tokens: tuple[int, ...] = (128,)
    depth_tokens: tuple[int, ...] = (0,)
    repetitions: int = 10
    delay_seconds: float = 0.0
    context_length: int | None = None
    threads: int | None = None
    kv_cache_type: KvCacheType | None = None
    flash_attention: bool | None = None
    batch_tokens: int = 512

    @computed_field  # type: ignore[prop-decorator]
    @property
    def decode_prompt_tokens(self) -> int:
        """Always the same, and written to JSON."""
        return DECODE_PROMPT_TOKENS


class BenchReport(Shown):
    """The outcome of `localq bench`, with all that is needed to repeat it."""

    machine: Machine
    settings: BenchSettings
    """As used: `context_length` is a number."""
    started: AwareDatetime
    memory_bandwidth_bytes_per_second: float
    """Best of several rounds, before and after the measurements."""
    warnings: tuple[str, ...]
    """What makes the figures less sure."""
    partial: bool = False
    """Whether Ctrl-C stopped it. It has the repetitions that were complete: fewer than the settings say."""
    results: Annotated[tuple[FormSpeed, ...], Field(min_length=1)]
    comparisons: tuple[SpeedComparison, ...]
    """Of every two forms in every test; none for a single repetition."""
    command: str = ""
    """The line that repeats it."""

    @model_validator(mode="after")
    def _compares_its_own(self) -> BenchReport:
        _require_names(self.results, [item.pair for item in self.comparisons])
        return self

    def _document(self) -> Document:
        from localq.measure.documents import bench_document

        return bench_document(self)


class Cost(Data):
    """What it took to run a form in an evaluation. Indicative: `localq bench` measures it properly."""

    bytes_read_per_token: int | None
    """Of weights, as the form lies in memory here; None where its files don't say."""
    load_seconds: float
    prompt_seconds_per_token: float
    """Of the windows, without the first one where there are more."""
    generated_seconds_per_token: float | None
    """Of a short reply to one token; None where the context has no room for it."""
    peak_memory_bytes: int
    """Of the form's process, with what the evaluation itself takes."""


class BaselineQuality(FormFacts, Cost):
    """What the other forms are compared with."""

    perplexity: float
    perplexity_standard_error: float | None


class Divergence(Data):
    """How far a form's predictions are from the baseline's; `localq.measure.divergence` has the formulas.

    A percentile lies between two positions' values, interpolated linearly. Standard errors are those of independent
    positions, as llama-perplexity has them; None for a single position.
    """

    positions: int
    mean_kl_divergence: float
    """Mean of the positions' divergences, in nats. 0 where the form predicts what the baseline does."""
    kl_divergence_standard_error: float | None
    median_kl_divergence: float
    p90_kl_divergence: float
    p95_kl_divergence: float
    p99_kl_divergence: float
    p99_9_kl_divergence: float
    max_kl_divergence: float
    same_top_fraction: float
    """Share f of the positions where both hold the same token most likely."""
    same_top_standard_error: float | None
    """sqrt(f (1 - f) / (positions - 1))."""
    perplexity: float
    """exp(mean of -ln Q(right token))."""
    perplexity_standard_error: float | None
    """Perplexity x standard error of that mean."""
    reference_perplexity: float
    log_perplexity_ratio: float
    """ln(perplexity / baseline's perplexity): the mean of ln P - ln Q of the right token."""
    log_perplexity_ratio_standard_error: float | None
    mean_probability_change: float
    """Mean of Q - P of the right token: llama-perplexity's mean delta-p, as a fraction."""
    mean_probability_change_standard_error: float | None
    rms_probability_change: float
    """sqrt(mean of (Q - P) squared): its RMS delta-p."""
    rms_probability_change_standard_error: float | None
    max_probability_change: float
    """Largest |Q - P| of the right token."""


class FormQuality(FormFacts, Divergence, Cost):
    """What was found of one form."""


class QualityComparison(Data):
    """Which of two forms is nearer to the baseline."""

    nearer: str
    """Name of the form with the smaller mean divergence; `farther` is the other one's."""
    farther: str
    difference: Interval
    """Of their mean divergences, farther less nearer, taken window by window."""
    differs: bool
    """Whether the interval lies above 0 and, across engines, above the noise floor; else none is called nearer."""

    @property
    def pair(self) -> tuple[str, str]:
        """The better one first."""
        return self.nearer, self.farther


class EvalText(Data):
    """What was evaluated on, and how, as used."""

    text: str
    text_sha256: str
    """Of the whole file."""
    window_tokens: int
    first_scored: int
    windows: int
    begin_token_id: int | None
    """In each window's first place, where the tokenizer puts one before texts."""
    positions: int
    """That were scored in all."""
    threads: int | None
    """For the GGUF forms; None is llama.cpp's default here."""
    generated_tokens: int
    """Of the short reply that shows how long a token takes."""


class EvalReport(Shown):
    """The outcome of `localq eval`, with all that is needed to repeat it."""

    machine: Machine
    settings: EvalText
    started: AwareDatetime
    reference: BaselineQuality
    noise_floor: FormQuality | None
    """The unquantized form in the other engine; None where one engine ran all."""
    results: Annotated[tuple[FormQuality, ...], Field(min_length=1)]
    comparisons: tuple[QualityComparison, ...]
    """Of every two forms."""
    warnings: tuple[str, ...]
    command: str = ""
    """The line that repeats it."""

    @model_validator(mode="after")
    def _compares_its_own(self) -> EvalReport:
        _require_names(self.results, [item.pair for item in self.comparisons])
        return self

    def _document(self) -> Document:
        from localq.measure.documents import eval_document

        return eval_document(self)

    @property
    def roles(self) -> dict[str, str]:
        """`baseline` and `noise floor`, by the names of these forms."""
        floor = {self.noise_floor.name: "noise floor"} if self.noise_floor else {}
        return {**floor, self.reference.name: "baseline"}

    @property
    def engines_agree(self) -> bool:
        """Whether unquantized formats of both engines predict the same, as far as that was measured."""
        return self.noise_floor is None or self.noise_floor.mean_kl_divergence <= LARGEST_NOISE_FLOOR


def _require_names(forms: Sequence[FormFacts], pairs: Iterable[tuple[str, str]]) -> None:
    """Each name once, and only these compared. Raises ValueError, which pydantic turns into a ValidationError."""
    names = [form.name for form in forms]
    if len(set(names)) < len(names) or not set().union(*pairs) <= set(names):
        raise ValueError("the names of results and comparisons don't fit")


Report = TypeVar("Report", BenchReport, EvalReport)


def load_report(file: Path, kind: type[Report]) -> Report:
    """A report that `--json` wrote. Raises OptionError that names what is missing or wrong."""
    verb = "bench" if issubclass(kind, BenchReport) else "eval"
    hint = f"write one with: localq {verb} REF... --json > {verb}.json"
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise OptionError(f"{file} has more than {_MOST_BYTES >> 20} MiB: it is no report", hint)
        return kind.model_validate_json(content)
    except OSError as error:
        raise OptionError(f"can't read {file}: {reason(error)}", hint) from error
    except ValidationError as error:
        raise OptionError(f"{file} is no report of localq {verb}: {first_fault(error)}", hint) from error


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong, with its place: `results.0.load_seconds: Field required`."""
    fault = error.errors(include_url=False)[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])
