"""The engine boundary: token ids in, token ids out.

An engine runs one opened model. It knows no text, no chat template, no end token and no stop string: the modules above
it handle those, once for all engines.

To write a new engine:

1. `localq/engines/NAME.py` with a class that fulfils `Engine`, and the function `localq.model` opens it with:
   `open_engine(path: Path, options: LoadOptions, context_length: int) -> Engine`. `context_length` is the number of
   tokens to make room for; `options.context_length`, which it was chosen from, is ignored. It raises EngineError with
   the library's own reason when the model can't be loaded, and UnsupportedOptionError for an option that the library
   does not have. A large engine may have more files, named `NAME_*.py`. The helpers below are for all engines.
2. One line in `BACKENDS` of `localq/backends.py`: the format, the module, the library that must be installed.
3. `tests/contracts/conftest.py`: open it in the fixture `make_engine`. Those tests check what `Engine` states.
4. Only for a new format: a recipe in `localq/recipes.py`, its conversion in `localq/conversion/`, and `open_form` in
   `localq/model.py`.

Of an engine that holds a single sequence, `sequences` is 1 and `step` takes one feed at a time: it may be a loop over
what `prefill` and `generate` do. `LoadOptions.sequences` above 1 is then an UnsupportedOptionError.

`tests/scripted_engine.py` is the smallest engine, to copy from. Import heavy libraries inside functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from localq.errors import EngineError, OptionError, PromptTooLongError
from localq.options import MOST_BATCH_TOKENS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from localq.options import GenerationOptions

PrefillProgress = Callable[[int, int], None]
"""Called after every chunk of the prompt with (tokens done, tokens in all). When it raises, the prefill is cancelled
and the engine stays usable."""

_Item = TypeVar("_Item")

PREFILL_CHUNK_TOKENS = MOST_BATCH_TOKENS
"""Most prompt tokens computed between two chances to cancel."""

CHUNK_LOGITS_BYTES = 64 << 20
"""Most memory that one chunk of logits takes: 128 rows of 131,072 tokens."""

_FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class EngineState:
    """What an engine has computed: tokens with their keys and values. An engine of the same kind can restore it."""

    tokens: tuple[int, ...]
    arrays: tuple[NDArray[np.uint8], ...]
    """In the engine's own layout."""
    repeatable_tokens: int = 0
    """See `SequenceTokens`; 0 where it is not known."""


class SequenceSampler(Protocol):
    """Draws the ids of one reply by its options, with its own random numbers. Each engine has its own kind."""

    def accept(self, token_id: int) -> None:
        """A token came that was not drawn: the penalties apply to it too."""

    def close(self) -> None:
        """Free it. Calling it twice is harmless."""


@dataclass(frozen=True, slots=True)
class Feed:
    """What one sequence gets in a step."""

    sequence: int
    tokens: Sequence[int]
    """At least one; at most `Engine.chunk_tokens`."""
    sampler: Any = None
    """What `Engine.sampler` gave: draws the token that follows. None: nothing is drawn."""
    mask: NDArray[np.bool_] | None = None
    """Shape (vocabulary_size,): the tokens that may be drawn. None: all."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a step drew for a sequence."""

    token_id: int
    logits: NDArray[np.float32] | None
    """The row that it was drawn from, before the mask; None without the option `logprobs`."""


class Constraint(Protocol):
    """What a reply may be, token by token: the state of one reply, such as the place in a grammar.

    Each method may raise an error of the tree: it ends this reply and no other one.
    """

    def mask(self) -> NDArray[np.bool_] | NDArray[np.int32] | None:
        """Which tokens may come next: a bool for each id, or 32 of them in each number, lowest bit first.

        None allows all. Ids beyond the end are not allowed. At least one is, such as an end token.
        """

    def accept(self, token_id: int) -> None:
        """A token was generated, one that the mask allowed or a forced one."""

    def forced(self) -> Sequence[int]:
        """Ids that must come next, in this order; empty where there is a choice.

        They may become part of the reply without being drawn. Each one is accepted afterwards.
        """


class Engine(Protocol):
    """One opened model. Not safe for use by several threads at once; `Model` serializes its callers.

    It holds `sequences`. A single reply uses number 0, with `prefill`, `generate`, `logits` and `logits_in_chunks`.
    Several are computed together by `begin` and `step`.
    """

    @property
    def context_length(self) -> int:
        """Tokens of prompt and reply that fit."""

    @property
    def vocabulary_size(self) -> int:
        """Number of logits per token."""

    @property
    def sequences(self) -> int:
        """How many sequences of tokens it holds, each with a context of its own. They are numbered from 0."""

    @property
    def chunk_tokens(self) -> int:
        """Most tokens of a prompt in a step. Reproducible engines want all of them whole, but the last one."""

    @property
    def step_tokens(self) -> int:
        """Most tokens of prompts in a step that takes about as long as they do; at least `chunk_tokens`.

        It is more where the prompts of several sequences are computed together.
        """

    @property
    def state_settings(self) -> Mapping[str, str | bool]:
        """Settings that the keys and values depend on: with the same weights and settings, states can be exchanged."""

    def prefill(self, prompt: Sequence[int], on_progress: PrefillProgress | None = None) -> int:
        """Compute the prompt up to the logits of its last token.

        Tokens that are in the key-value cache already are used as far as they are a prefix of `prompt`.
        Returns the number of prompt tokens taken from there; at least one token is always computed.
        Raises PromptTooLongError when the prompt leaves no room for one more token, EngineError when it is
        empty or has an id outside the vocabulary.
        """

    def generate(self, options: GenerationOptions, constraint: Constraint | None = None) -> Generator[int, None, None]:
        """Continue the prefilled prompt: ids one by one, at most `options.max_tokens`, until the context is full.

        The first id is drawn from the logits that `prefill` computed; each further one takes one forward pass.
        The caller stops early by closing the generator. Ids include end tokens: the engine does not know them.
        With `options.logprobs`, `logits` gives the row that an id was drawn from until the next id is requested;
        without, tokens that the constraint forces are not drawn.
        Raises EngineError when no prefill was completed before; OptionError as `check_bias`.
        """

    def logits(self) -> NDArray[np.float32]:
        """Logits after the newest computed token: shape (vocabulary_size,).

        While `generate` runs without `logprobs`, an engine may already have computed the id that it gave last.
        """

    def logits_in_chunks(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """Logits after each of `tokens` from index `first` on, from an empty cache, in order.

        Arrays of shape (rows, vocabulary_size) that the caller may keep, each of at most `CHUNK_LOGITS_BYTES`, or of
        one row. `tokens` may fill the whole context, and the cache holds them at the end. Until then nothing else may
        be called. Raises PromptTooLongError or EngineError when the first chunk is requested.
        """

    def sampler(self, options: GenerationOptions, context: Sequence[int]) -> SequenceSampler:
        """For one reply after the tokens `context`. Raises OptionError as `check_bias`."""

    def reusable(self, sequence: int, prompt: Sequence[int]) -> int:
        """How many leading tokens of `prompt` need not be computed if it begins in this sequence."""

    def begin(self, sequence: int, prompt: Sequence[int]) -> int:
        """Prepare a sequence for a prompt: keep `reusable` tokens and cut off the others; returns their number.

        Raises as `prefill`.
        """

    def step(self, feeds: Sequence[Feed]) -> list[Drawn | None]:
        """Append tokens to sequences, each of them at most once, and draw what follows where a sampler is given.

        A sequence must have been begun. Where the engine is reproducible, a sequence gets the same as if it were fed
        alone. There are no `logits` afterwards. Raises EngineError; then all sequences are empty.
        """

    def state(self, sequence: int = 0) -> EngineState:
        """A copy of what the cache holds; a prefill must come before more is generated.

        Raises UnsupportedOptionError for a network whose cache can't be copied.
        """

    def restore(self, state: EngineState, sequence: int = 0) -> None:
        """Replace what the cache of a sequence holds by a state, as if its tokens had been computed.

        There are no logits yet. Raises EngineError when it does not fit this engine; then the cache is empty.
        """

    def close(self) -> None:
        """Free the model's memory. Calling it twice is harmless."""


def check_prompt(prompt: Sequence[int], vocabulary_size: int, context_length: int) -> None:
    """Refuse a prompt that can't be computed: PromptTooLongError or EngineError.

    A context of n tokens takes prompts of at most n - 1, so that there is room for an answer.
    """
    if not prompt:
        raise EngineError("the prompt has no tokens", "give at least one, such as the beginning-of-text token")
    if len(prompt) >= context_length:
        raise PromptTooLongError(len(prompt), context_length)
    check_ids(prompt, vocabulary_size)


def check_window(tokens: Sequence[int], vocabulary_size: int, context_length: int) -> None:
    """Refuse tokens whose logits can't be computed: PromptTooLongError or EngineError. They may fill the context."""
    check_ids(tokens, vocabulary_size)
    if len(tokens) > context_length:
        raise PromptTooLongError(len(tokens), context_length)


def check_ids(tokens: Sequence[int], vocabulary_size: int) -> None:
    """Raise EngineError when an id lies outside the vocabulary: not every library checks it."""
    outside = next((token for token in tokens if not 0 <= token < vocabulary_size), None)
    if outside is not None:
        raise EngineError(
            f"token id {outside} is not in this model's vocabulary of {vocabulary_size}",
            "tokenizer and weights are of different models",
        )


def check_bias(options: GenerationOptions, vocabulary_size: int) -> None:
    """Raise OptionError when the logit bias names a token outside the vocabulary, or bans all tokens."""
    outside = next((token for token in options.logit_bias if token >= vocabulary_size), None)
    if outside is not None:
        raise OptionError(
            f"logit_bias names token {outside}; this model's vocabulary has {vocabulary_size}",
            f"ids go from 0 to {vocabulary_size - 1}",
        )
    if list(options.logit_bias.values()).count(-math.inf) == vocabulary_size:
        raise OptionError(f"logit_bias bans all {vocabulary_size} tokens of the vocabulary", "leave at least one")


class Guide:
    """A constraint, or none, as an engine needs it."""

    def __init__(self, constraint: Constraint | None, options: GenerationOptions, vocabulary_size: int) -> None:
        self._constraint = constraint
        self._takes_forced = options.logprobs is None  # each id has a row of logits otherwise
        self._vocabulary_size = vocabulary_size

    def mask(self) -> NDArray[np.bool_] | None:
        """The tokens that may be drawn, shape (vocabulary_size,); None: all. Raises EngineError where none may be."""
        import numpy as np

        given = None if self._constraint is None else self._constraint.mask()
        if given is None:
            return None
        if given.dtype != np.bool_:
            given = np.unpackbits(given.view(np.uint8), bitorder="little").view(np.bool_)
        allowed = np.zeros(self._vocabulary_size, dtype=np.bool_)
        known = given[: self._vocabulary_size]
        allowed[: len(known)] = known
        if not allowed.any():
            raise EngineError("the constraint of this reply allows no token at all")
        return allowed

    def follow(self, token_id: int) -> list[int]:
        """A token was drawn; returns it with those that must come next."""
        if self._constraint is None:
            return [token_id]
        self._constraint.accept(token_id)
        forced = list(self._constraint.forced()) if self._takes_forced else []
        for following in forced:
            self._constraint.accept(following)
        return [token_id, *forced]


@dataclass(slots=True)
class SequenceTokens:
    """The tokens that the cache of a sequence certainly holds. After an interruption it may hold more, never less.

    Where replies must be repeatable, only tokens at its beginning that were computed in whole chunks are used again:
    the numbers in the cache depend on how many tokens a pass has, in the last digit.
    """

    chunk_tokens: int | None = None
    """Of a reproducible engine; None where all tokens may be used again."""
    ids: list[int] = field(default_factory=list)
    repeatable: int = 0

    def append(self, tokens: Sequence[int]) -> None:
        """Tokens that were computed in one pass."""
        if len(tokens) == self.chunk_tokens and self.repeatable == len(self.ids):
            self.repeatable += len(tokens)
        self.ids.extend(tokens)

    def cut(self, token_count: int) -> None:
        """Only the first tokens are left."""
        del self.ids[token_count:]
        self.repeatable = min(self.repeatable, token_count)

    def reusable(self, prompt: Sequence[int]) -> int:
        """See `Engine.reusable`."""
        shared = shared_prefix_tokens(self.ids, prompt)
        if self.chunk_tokens is None:
            return shared
        return min(shared, self.repeatable) // self.chunk_tokens * self.chunk_tokens


def shared_prefix_tokens(cached: Sequence[int], prompt: Sequence[int]) -> int:
    """How many leading tokens of `prompt` the cache already holds.

    At most one less than the prompt has, because the logits of its last token must be computed.
    """
    limit = min(len(cached), len(prompt) - 1)
    return next((i for i in range(limit) if cached[i] != prompt[i]), limit)


def chunks(items: Sequence[_Item], start: int, size: int = PREFILL_CHUNK_TOKENS) -> Iterator[Sequence[_Item]]:
    """`items` from `start` on, in pieces of at most `size`."""
    for first in range(start, len(items), size):
        yield items[first : first + size]


def rows_per_chunk(vocabulary_size: int) -> int:
    """Rows of logits that a chunk has at most: as many as fit in `CHUNK_LOGITS_BYTES`, at least one."""
    return max(1, CHUNK_LOGITS_BYTES // (_FLOAT32_BYTES * vocabulary_size))
