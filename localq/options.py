"""Options for converting, loading and generating. The only place that holds their defaults."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, cast, get_args

from localq.errors import OptionError
from localq.keywords import named_options

KvCacheType = Literal["q8_0", "q4_0"]
"""8 or 4 bits for each key and value, with a scale for every 32 (llama.cpp) or 64 (MLX) of them."""

DEFAULT_CONTEXT_LENGTH_TOKENS = 8192
"""Longest context by default; a model with a smaller maximum gets its maximum."""

MOST_BATCH_TOKENS = 512
"""Most prompt tokens computed between two chances to cancel a reply."""

MOST_SEQUENCES = 256
"""Most sequences of one open model (llama.cpp's LLAMA_MAX_SEQ)."""

PENALTY_WINDOW_TOKENS = 64
"""How many of the newest tokens, prompt included, the three penalties apply to (llama.cpp's default)."""

_LARGEST_PENALTY = _LARGEST_BIAS = 1000.0
_SMALLEST_REPEAT_PENALTY, _LARGEST_REPEAT_PENALTY = 1e-3, 1e6
# Larger than useful. Beyond 3e8 llama.cpp sorts logits wrongly, and beyond 3e38 they are not float32.

_GREEDY_BELOW_TEMPERATURE = 1e-30
# Logits divided by less are not float32. Long before that only the most likely token is left.

_COUNT = "a whole number, at least 1"
_MOST_THREADS = 512  # GGML_MAX_N_THREADS: with more, llama.cpp ends the process

_Kind = TypeVar("_Kind")


def _refuses_other_names(kind: type[_Kind]) -> type[_Kind]:
    kind.__init__ = named_options()(kind.__init__)  # type: ignore[method-assign]
    return kind


@_refuses_other_names
@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """How one reply is generated; the same meaning on every engine.

    They apply in this order: logit bias, the three penalties, top-k, top-p, min-p, temperature, draw.
    The defaults are greedy, so that the same question gives the same answer in every run.

    max_tokens: Most tokens to generate; fewer when the context is full.
    temperature: 0 is greedy: always the most likely token.
    top_k: Keep the k most likely tokens; 0 keeps all.
    top_p: Keep the smallest set of tokens whose probability reaches p; 1 keeps all.
    min_p: Drop tokens with less than this share of the most likely token's probability; 0 drops none.
    repeat_penalty: Divide (or, below zero, multiply) the logits of recent tokens by this; 1 is off.
    presence_penalty: Subtract this from the logits of recent tokens; 0 is off.
    frequency_penalty: Subtract this from the logits of recent tokens for each time that they occur; 0 is off.
    logit_bias: What to add to the logits of single tokens, by their ids; -inf bans one.
    seed: Makes a sampled run repeatable on the same engine; None draws a random one.
    stop: Strings that end the reply; they are not part of its text.
    logprobs: Give the log-probability of every generated token and of this many most likely ones; None gives none.
    schema: The reply is JSON by this JSON schema: an object, its text, or a pydantic model's class. Its objects get no
        other properties than it names, unless it speaks of others.
    regex: The whole reply matches this regular expression (of Rust: without look-around and back references).
    choice: The reply is one of these texts.
    grammar: The reply follows this grammar, in Lark's notation. Only one of the last four can be given.
    """

    max_tokens: int = 1024
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    schema: Mapping[str, Any] | str | type | None = field(default=None, hash=False)
    regex: str | None = None
    choice: Sequence[str] = ()
    grammar: str | None = None

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always chosen, after bias and penalties; the filters always keep it."""
        return self.temperature < _GREEDY_BELOW_TEMPERATURE

    @property
    def penalizes(self) -> bool:
        """Whether recent tokens matter."""
        return self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def __post_init__(self) -> None:
        _require(_is_integer(self.max_tokens) and self.max_tokens >= 1, "max_tokens", self.max_tokens, _COUNT)
        _require(
            _is_number(self.temperature) and self.temperature >= 0,
            "temperature",
            self.temperature,
            "a number, 0 or more",
        )
        _require(_is_integer(self.top_k) and self.top_k >= 0, "top_k", self.top_k, "a whole number, 0 or more")
        _require(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1")
        self._check_penalties()
        seed_fits = self.seed is None or (_is_integer(self.seed) and 0 <= self.seed < 2**32 - 1)
        _require(seed_fits, "seed", self.seed, "a whole number between 0 and 4294967294")
        # A string is a sequence of strings too: each of its letters would end the reply.
        _require(_are_texts(self.stop), "stop", self.stop, "a list of texts, none of them empty")
        object.__setattr__(self, "stop", tuple(self.stop))
        logprobs_fit = self.logprobs is None or (_is_integer(self.logprobs) and self.logprobs >= 0)
        _require(logprobs_fit, "logprobs", self.logprobs, "a whole number, 0 or more")
        self._check_form()

    def _check_form(self) -> None:
        if self.schema is not None:
            object.__setattr__(self, "schema", _json_schema(self.schema))
        for name, text in (("regex", self.regex), ("grammar", self.grammar)):
            _require(text is None or (isinstance(text, str) and bool(text)), name, text, "a text that is not empty")
        _require(_are_texts(self.choice), "choice", self.choice, "a list of texts, none of them empty")
        object.__setattr__(self, "choice", tuple(self.choice))
        given = [name for name in ("schema", "regex", "choice", "grammar") if getattr(self, name) not in (None, ())]
        if len(given) > 1:
            raise OptionError(f"a reply can't have a {' and a '.join(given)}", "give one of them")

    def _check_penalties(self) -> None:
        smallest, largest = _SMALLEST_REPEAT_PENALTY, _LARGEST_REPEAT_PENALTY
        fits = _is_number(self.repeat_penalty) and smallest <= self.repeat_penalty <= largest
        _require(fits, "repeat_penalty", self.repeat_penalty, f"a number between {smallest:g} and {largest:g}")
        for name, value in (("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)):
            fits = _is_number(value) and abs(value) <= _LARGEST_PENALTY
            _require(fits, name, value, f"a number between {-_LARGEST_PENALTY:g} and {_LARGEST_PENALTY:g}")
        expected = f"token ids with numbers between {-_LARGEST_BIAS:g} and {_LARGEST_BIAS:g}, or -inf"
        _require(_is_logit_bias(self.logit_bias), "logit_bias", self.logit_bias, expected)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))


class GenerationKeywords(TypedDict, total=False):
    """The fields of `GenerationOptions`, for type checkers and editors."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None
    stop: tuple[str, ...]
    logprobs: int | None
    schema: Mapping[str, Any] | str | type | None
    regex: str | None
    choice: Sequence[str]
    grammar: str | None


def chosen_options(options: GenerationOptions | None, changes: GenerationKeywords) -> GenerationOptions:
    """`options`, else the defaults, with those that were given by name. Raises OptionError."""
    if options is not None and not isinstance(options, GenerationOptions):
        raise OptionError(
            f"options is {options!r}; expected GenerationOptions", "or give options by name: max_tokens=9"
        )
    return replace(options or GenerationOptions(), **changes)


@_refuses_other_names
@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How a checkpoint is converted.

    force: Make artifacts again that exist already.
    pre_tokenizer: llama.cpp's name of the rule to split text by, for a tokenizer whose rule is not recognised (GGUF).
    imatrix: The file of an importance matrix for the calibrated formats, as llama-imatrix writes it (GGUF or .dat), in
        place of the model's calibration.
    """

    force: bool = False
    pre_tokenizer: str | None = None
    imatrix: Path | str | None = None


class ConvertKeywords(TypedDict, total=False):
    """The fields of `ConvertOptions`, for type checkers and editors."""

    force: bool
    pre_tokenizer: str | None
    imatrix: Path | str | None


@_refuses_other_names
@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is opened.

    context_length: Tokens of prompt and reply together; None means the model's default.
    threads: CPU threads for llama.cpp; None means one per physical core that this process may use, and a single one for
        a very small model. MLX chooses its own and refuses a number.
    kv_cache_type: Type of the keys and values of the context; None means half precision, or the type that the model
        computes in.
    flash_attention: Whether llama.cpp uses it; None lets llama.cpp choose, except that it is off for a model in
        float32. MLX has one kind of attention and refuses a choice.
    batch_tokens: Most prompt tokens computed in one pass, and between two chances to cancel.
    sequences: Replies that can be computed at the same time (`localq.batching`); each has a context of its own.
    reproducible: Compute every reply as if it were alone: the same seed gives the same bytes in any company. It costs
        a fifth of the speed of one reply, and half where sixteen are computed together (benchmarks/README.md).
    """

    context_length: int | None = None
    threads: int | None = None
    kv_cache_type: KvCacheType | None = None
    flash_attention: bool | None = None
    batch_tokens: int = MOST_BATCH_TOKENS
    sequences: int = 1
    reproducible: bool = False

    def __post_init__(self) -> None:
        length, threads = self.context_length, self.threads
        _require(length is None or (_is_integer(length) and length >= 1), "context_length", length, _COUNT)
        fits = threads is None or (_is_integer(threads) and 1 <= threads <= _MOST_THREADS)
        _require(fits, "threads", threads, f"a whole number between 1 and {_MOST_THREADS}")
        types = get_args(KvCacheType)
        _require(self.kv_cache_type in (None, *types), "kv_cache_type", self.kv_cache_type, " or ".join(types))
        flash = self.flash_attention
        _require(flash is None or isinstance(flash, bool), "flash_attention", flash, "True, False or None")
        _require(not (self.reproducible and flash), "flash_attention", flash, "False or None with reproducible")
        fits = _is_integer(self.batch_tokens) and 1 <= self.batch_tokens <= MOST_BATCH_TOKENS
        _require(fits, "batch_tokens", self.batch_tokens, f"a whole number between 1 and {MOST_BATCH_TOKENS}")
        fits = _is_integer(self.sequences) and 1 <= self.sequences <= MOST_SEQUENCES
        _require(fits, "sequences", self.sequences, f"a whole number between 1 and {MOST_SEQUENCES}")
        _require(isinstance(self.reproducible, bool), "reproducible", self.reproducible, "True or False")


class SingleReplyKeywords(TypedDict, total=False):
    """Those fields of `LoadOptions` that matter where one reply is computed after the other."""

    context_length: int | None
    threads: int | None
    kv_cache_type: KvCacheType | None
    flash_attention: bool | None
    batch_tokens: int


class LoadKeywords(SingleReplyKeywords, total=False):
    """The fields of `LoadOptions`, for type checkers and editors."""

    sequences: int
    reproducible: bool


def _is_integer(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Integral)


def _is_number(value: object) -> bool:
    """Whether it is a finite number: not a string, a bool or NaN."""
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)


def _is_logit_bias(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_integer(token) and token >= 0 and (bias == -math.inf or (_is_number(bias) and abs(bias) <= _LARGEST_BIAS))
        for token, bias in value.items()
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(text, str) and text for text in value)


def _json_schema(given: object) -> Mapping[str, Any]:
    """A JSON schema as an object: of one, of its text, or of a pydantic model's class."""
    schema: object = given
    if isinstance(given, type) and hasattr(given, "model_json_schema"):
        schema = given.model_json_schema()
    elif isinstance(given, str):
        try:
            schema = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"schema is not JSON: {error}", 'give an object, such as {"type": "object"}') from error
    _require(isinstance(schema, Mapping), "schema", schema, "a JSON schema that is an object, or a pydantic class")
    return dict(cast(Mapping[str, Any], schema))


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise OptionError(f"{name} is {value!r}; expected {expected}")
