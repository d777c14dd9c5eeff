"""What `localq eval` is asked for and what it found: data alone, and its JSON. What the figures mean is defined by
`localq.measure.quality.divergence`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localq.errors import OptionError
from localq.measure.forms import Form
from localq.measure.machine import Machine
from localq.measure.quality.divergence import Divergence, Estimate
from localq.measure.quality.windows import DEFAULT_MOST_WINDOWS, DEFAULT_WINDOW_TOKENS, WindowSettings
from localq.measure.speed.results import Interval

GENERATED_TOKENS = 32
"""Of the short reply that tells how long a token takes."""


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """What is evaluated."""

    reference: str | None = None
    """The form that others are compared with; None takes the unquantized one."""
    text_file: Path | None = None
    """`-` is standard input; None takes the text that comes with the toys, for them alone."""
    window_tokens: int | None = None
    """None takes 512, or the model's longest context where that is less."""
    first_scored: int | None = None
    """Index of the first position in a window that is scored; None takes the half."""
    most_windows: int = DEFAULT_MOST_WINDOWS
    threads: int | None = None
    """CPU threads for the GGUF forms; None takes the default of `LoadOptions`. MLX chooses its own."""
    noise_floor: bool = True
    """Whether the engines are compared without quantization, where both are used."""

    def __post_init__(self) -> None:
        self.windows()
        if self.threads is not None and self.threads < 1:
            raise OptionError(f"threads is {self.threads}; expected at least 1")

    def windows(self, most_context_tokens: int | None = None) -> WindowSettings:
        """How the text is cut for models with such a longest context. Raises OptionError for what does not fit."""
        most, size = most_context_tokens, self.window_tokens
        if size is None:
            size = min(DEFAULT_WINDOW_TOKENS, most or DEFAULT_WINDOW_TOKENS)
        elif most is not None and size > most:
            raise OptionError(
                f"--window is {size}; the longest context of these forms is {most}", f"give --window {most} or less"
            )
        return WindowSettings(size, self.first_scored, self.most_windows)


@dataclass(frozen=True, slots=True)
class Cost:
    """What it took to run a form here. Indicative, for before and after: `localq bench` measures it properly."""

    load_seconds: float
    prompt_seconds_per_token: float
    """Of this evaluation's windows, all but the first where there are more; the output layer computes the scored
    positions alone."""
    generated_seconds_per_token: float | None
    """Of a reply of up to `GENERATED_TOKENS` to one token; None where the context has no room for it."""
    peak_memory_bytes: int
    """Of the form's process, with what the evaluation itself takes."""


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """What others were compared with."""

    form: Form
    perplexity: Estimate
    cost: Cost
    bytes_read_per_token: int | None
    """Of weights, as the form lies in memory here; None where its files don't tell."""

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            "model": self.form.model,
            "recipe": self.form.recipe,
            "perplexity": self.perplexity.value,
            "perplexity_standard_error": self.perplexity.standard_error,
            **_of_form(self.form, self.bytes_read_per_token),
            **asdict(self.cost),
        }


@dataclass(frozen=True, slots=True)
class EvalResult:
    """What was found of one form."""

    form: Form
    divergence: Divergence
    cost: Cost
    bytes_read_per_token: int | None
    """As in `ReferenceResult`."""

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        return {
            "model": self.form.model,
            "recipe": self.form.recipe,
            **asdict(self.divergence),
            **_of_form(self.form, self.bytes_read_per_token),
            **asdict(self.cost),
        }


@dataclass(frozen=True, slots=True)
class Nearness:
    """Which of two forms is nearer to the reference."""

    nearer: str
    """Name of the form with the smaller mean divergence; `farther` is the other one's."""
    farther: str
    difference: Interval
    """Of their mean divergences, farther less nearer, taken window by window."""
    differs: bool
    """Whether the interval lies above 0 and, across engines, above the noise floor; else none is to be called nearer.
    """


@dataclass(frozen=True, slots=True)
class UsedText:
    """What was evaluated on, as used."""

    text: str
    text_sha256: str
    """Of the whole file."""
    window_tokens: int
    first_scored: int
    windows: int
    begin_token_id: int | None
    """That stands in each window's first place, where the tokenizer puts one in front of texts."""

    @property
    def positions(self) -> int:
        """That were scored in all."""
        return self.windows * (self.window_tokens - self.first_scored - 1)


@dataclass(frozen=True, slots=True)
class EvalReport:
    """The outcome, with all that is needed to repeat it."""

    machine: Machine
    text: UsedText
    threads: int | None
    """For the GGUF forms; None is llama.cpp's default here."""
    reference: ReferenceResult
    noise_floor: EvalResult | None
    """The unquantized form in the other engine; None where one engine ran all."""
    results: tuple[EvalResult, ...]
    comparisons: tuple[Nearness, ...]
    """Of every two forms, in the order of the results."""
    warnings: tuple[str, ...]
    started: str
    """ISO 8601, in UTC."""

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`."""
        settings = {
            **asdict(self.text),
            "positions": self.text.positions,
            "threads": self.threads,
            "generated_tokens": GENERATED_TOKENS,
        }
        return {
            "machine": asdict(self.machine),
            "settings": settings,
            "started": self.started,
            "reference": self.reference.to_json(),
            "noise_floor": self.noise_floor.to_json() if self.noise_floor else None,
            "results": [result.to_json() for result in self.results],
            "comparisons": [asdict(comparison) for comparison in self.comparisons],
            "warnings": list(self.warnings),
        }


def _of_form(form: Form, bytes_read_per_token: int | None) -> dict[str, Any]:
    return {
        "bits_per_weight": form.bits_per_weight,
        "artifact_bytes": form.artifact_bytes,
        "bytes_read_per_token": bytes_read_per_token,
    }
