"""What a caller may choose when loading and generating. The only place that holds these defaults."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

from localq.errors import OptionError

DEFAULT_CONTEXT_LENGTH_TOKENS = 8192
"""Longest context by default; a model with a smaller maximum gets its maximum."""

REPEAT_PENALTY_WINDOW_TOKENS = 64
"""How many of the newest tokens, prompt included, the repeat penalty looks at (llama.cpp's default)."""

_COUNT = "a whole number, at least 1"


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How one reply is generated; the same meaning on every engine.

    Filters apply in this order: repeat penalty, top-k, top-p, min-p, temperature, draw.
    The defaults are greedy, so that the same question gives the same answer in every run.
    """

    max_tokens: int = 1024
    """Most tokens to generate; fewer when the context is full."""
    temperature: float = 0.0
    """0 is greedy: the likeliest token, always."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches p; 1 keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest one; 0 drops none."""
    repeat_penalty: float = 1.0
    """Divide (or, below zero, multiply) the logits of recent tokens by this; 1 is off."""
    seed: int | None = None
    """Makes a sampled run repeatable on the same engine; None draws a fresh one."""
    stop: tuple[str, ...] = ()
    """Strings that end the reply; they are not part of its text."""

    def __post_init__(self) -> None:
        _require(_is_integer(self.max_tokens) and self.max_tokens >= 1, "max_tokens", self.max_tokens, _COUNT)
        _require(_is_number(self.temperature) and self.temperature >= 0, "temperature", self.temperature, "0 or more")
        _require(_is_integer(self.top_k) and self.top_k >= 0, "top_k", self.top_k, "a whole number, 0 or more")
        _require(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1")
        penalty = self.repeat_penalty
        _require(_is_number(penalty) and penalty > 0, "repeat_penalty", penalty, "a number above 0")
        seed_fits = self.seed is None or (_is_integer(self.seed) and 0 <= self.seed < 2**32 - 1)
        _require(seed_fits, "seed", self.seed, "a whole number between 0 and 4294967294")
        # A string is a sequence of strings too: its letters would end the reply.
        _require(_are_texts(self.stop), "stop", self.stop, "a tuple of strings, none of them empty")
        object.__setattr__(self, "stop", tuple(self.stop))


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is opened."""

    context_length: int | None = None
    """Tokens of prompt and reply together; None takes the model's own default."""
    threads: int | None = None
    """CPU threads for llama.cpp; None takes one per physical core that this process may use, and
    one alone for a very small model. MLX chooses its own and refuses a number."""

    def __post_init__(self) -> None:
        for name, value in (("context_length", self.context_length), ("threads", self.threads)):
            _require(value is None or (_is_integer(value) and value >= 1), name, value, _COUNT)


def _is_integer(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Integral)


def _is_number(value: object) -> bool:
    """Whether it is a finite number: no text, no truth value, no NaN."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def _are_texts(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(text, str) and text for text in value)


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise OptionError(f"{name} is {value!r}; expected {expected}")
