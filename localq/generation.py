"""One reply: an engine's token ids turned into text, ended where it must end, and timed.

The same for every engine. Knows no files and no chat template.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from localq.engines.base import check_bias
from localq.text.text_stream import TextStream

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from localq.engines.base import Constraint, Engine, PrefillProgress
    from localq.options import GenerationOptions
    from localq.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "interrupted"]
"""`stop`: an end token or a stop string; `length`: max_tokens, or the context is full; `interrupted`: the reader ended
it (`ReplyStream.stop`)."""

_FIRST_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class TextRules:
    """How the ids of a reply become text."""

    tokenizer: Tokenizer
    end_tokens: frozenset[int] = frozenset()
    """Ids that end the reply and are not part of its text."""
    strip_leading_space: bool = False
    """Drop one space at the beginning of the text; see `Tokenizer.strips_leading_space`."""
    begun: tuple[int, ...] = ()
    """Ids at the end of the prompt that begin the reply. Their text is known: only what follows is released."""
    constraint: Constraint | None = None
    """What the reply may be; a new one for each reply. None: anything."""


@dataclass(frozen=True, slots=True)
class GenerationStatistics:
    """Counts and times of one reply. A rate is None where it is not defined, never infinite."""

    prompt_tokens: int
    cached_prompt_tokens: int
    """How many of them were in the engine's cache already."""
    generated_tokens: int
    """Every id that the engine gave, end token included."""
    prompt_seconds: float
    """From the start until the logits of the last prompt token."""
    decode_seconds: float
    """After the first id, counted only inside the engine: without the time of the reader."""
    time_to_first_token_seconds: float | None
    """From the start until the first id; None when there was none."""

    @property
    def prompt_tokens_per_second(self) -> float | None:
        """(prompt_tokens - cached_prompt_tokens) / prompt_seconds."""
        return _rate(self.prompt_tokens - self.cached_prompt_tokens, self.prompt_seconds)

    @property
    def generated_tokens_per_second(self) -> float | None:
        """(generated_tokens - 1) / decode_seconds: the first id needs no forward pass of its own."""
        return _rate(self.generated_tokens - 1, self.decode_seconds)

    def __str__(self) -> str:
        """One line for people: tokens and rates."""
        cached = f" ({self.cached_prompt_tokens} from the cache)" if self.cached_prompt_tokens else ""
        parts = [
            f"{self.prompt_tokens} prompt tokens{cached} at {_shown_rate(self.prompt_tokens_per_second)} t/s",
            f"{self.generated_tokens} generated at {_shown_rate(self.generated_tokens_per_second)} t/s",
        ]
        if self.time_to_first_token_seconds is not None:
            parts.append(f"first token after {self.time_to_first_token_seconds:.2f} s")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log-probability of a generated token, and of the most likely ones at its position.

    Natural logarithms of the softmax of the model's logits, before bias, penalties, filters and temperature.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """(id, logprob) of the most likely tokens, as many as the option `logprobs` says, the most likely first."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a reply. Each piece has one token, except the last one, which has the result."""

    text: str
    """Often empty: an incomplete character or what may become a stop string is held back."""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    """Only in the last chunk."""
    statistics: GenerationStatistics | None = None
    """Only in the last chunk."""
    logprobs: TokenLogprobs | None = None
    """Of the token; None without the option `logprobs`."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole reply; `str()` of it is its text."""

    text: str
    finish_reason: FinishReason
    prompt_token_ids: tuple[int, ...]
    generated_token_ids: tuple[int, ...]
    """Every id that was generated: also the end token and what a stop string cut off, which are not in `text`."""
    statistics: GenerationStatistics
    logprobs: tuple[TokenLogprobs, ...] | None = None
    """Of each generated id; None without the option `logprobs`."""

    def __repr__(self) -> str:
        return f"<Completion {first_words(self.text)!r}, {self.finish_reason}: {self.statistics}>"

    def __str__(self) -> str:
        return self.text


def stream(
    engine: Engine,
    rules: TextRules,
    prompt: Sequence[int],
    options: GenerationOptions,
    on_progress: PrefillProgress | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Generator[Chunk, None, None]:
    """Generate a reply piece by piece; nothing is computed before the first piece is requested.

    `is_stopped` is called after every token; when it is true, the reply ends as `interrupted`.
    Closing the generator stops the generation and leaves the engine usable. Raises PromptTooLongError for a
    prompt that fills the context, EngineError for an empty one and for failures of the engine, OptionError for a
    logit bias that does not fit the vocabulary, and whatever `on_progress` raises.
    """
    check_bias(options, engine.vocabulary_size)  # as `generate` does, but before a long prompt is computed
    meter = Meter()
    cached = engine.prefill(prompt, on_progress)
    meter.prompt_is_computed()
    reply = ReplyState(rules, options)
    with closing(engine.generate(options, rules.constraint)) as ids:
        for token in meter.timed(ids):
            yield reply.push(token, None if options.logprobs is None else engine.logits())
            if reply.is_over:
                break
            if is_stopped():
                reply.finish_reason = "interrupted"
                break
    yield reply.finish(meter.statistics(len(prompt), cached))


class ReplyState:
    """One reply in push form: it is given ids and gives the chunks. It knows no engine and no clock."""

    def __init__(self, rules: TextRules, options: GenerationOptions) -> None:
        self._end_tokens = rules.end_tokens
        self._logprobs = options.logprobs
        self._text = TextStream(rules.tokenizer, options.stop, rules.strip_leading_space)
        self._text.begin_with(rules.begun)
        self.finish_reason: FinishReason = "length"
        """Of a reply that gets no more ids."""

    @property
    def is_over(self) -> bool:
        """Whether an end token or a stop string has come: no more ids are wanted."""
        return self.finish_reason == "stop"

    def push(self, token: int, logits: NDArray[np.float32] | None) -> Chunk:
        """The next id; `logits`, the row that it was drawn from, are needed only with the option `logprobs`."""
        is_end = token in self._end_tokens
        logprobs = None if self._logprobs is None or logits is None else _logprobs(logits, token, self._logprobs)
        chunk = Chunk("" if is_end else self._text.push(token), (token,), logprobs=logprobs)
        if is_end or self._text.stopped:
            self.finish_reason = "stop"
        return chunk

    def finish(self, statistics: GenerationStatistics) -> Chunk:
        """The last chunk; call it once."""
        rest = self._text.finish()
        # The incomplete character at the end, now U+FFFD, may complete a stop string.
        return Chunk(rest, (), "stop" if self._text.stopped else self.finish_reason, statistics)


def complete(engine: Engine, rules: TextRules, prompt: Sequence[int], options: GenerationOptions) -> Completion:
    """Generate a whole reply; arguments and errors as for `stream`."""
    chunks = list(stream(engine, rules, prompt, options))
    last = chunks[-1]
    assert last.finish_reason is not None and last.statistics is not None  # the last chunk has both
    return Completion(
        text="".join(chunk.text for chunk in chunks),
        finish_reason=last.finish_reason,
        prompt_token_ids=tuple(prompt),
        generated_token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        statistics=last.statistics,
        logprobs=None
        if options.logprobs is None
        else tuple(chunk.logprobs for chunk in chunks if chunk.logprobs is not None),
    )


def _logprobs(logits: NDArray[np.float32], token: int, count: int) -> TokenLogprobs:
    import numpy as np

    row = logits.astype(np.float64)
    row -= row.max()
    row -= np.log(np.exp(row).sum())
    count = min(count, len(row))
    most_likely = np.argpartition(-row, count - 1)[:count] if count else ()
    ordered = sorted((-float(row[alternative]), int(alternative)) for alternative in most_likely)
    return TokenLogprobs(token, float(row[token]), tuple((alternative, -less) for less, alternative in ordered))


class Meter:
    """Times one reply; the clock starts with it."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._prompt_seconds = 0.0
        self._decode_seconds = 0.0
        self._first_token_seconds: float | None = None
        self._generated_tokens = 0

    def prompt_is_computed(self) -> None:
        """The logits of the last prompt token are there."""
        self._prompt_seconds = time.perf_counter() - self._start

    def timed(self, ids: Iterator[int]) -> Iterator[int]:
        """The ids, each of them timed."""
        while True:
            asked = time.perf_counter()
            token = next(ids, None)
            came = time.perf_counter()
            if token is None:
                return
            self.count(asked, came)
            yield token

    def count(self, asked: float, came: float) -> None:
        """An id came that was asked for at that time."""
        if self._generated_tokens == 0:
            self._first_token_seconds = came - self._start
        else:
            self._decode_seconds += came - asked
        self._generated_tokens += 1

    def statistics(self, prompt_tokens: int, cached_prompt_tokens: int) -> GenerationStatistics:
        """What was counted until now."""
        return GenerationStatistics(
            prompt_tokens=prompt_tokens,
            cached_prompt_tokens=cached_prompt_tokens,
            generated_tokens=self._generated_tokens,
            prompt_seconds=self._prompt_seconds,
            decode_seconds=self._decode_seconds,
            time_to_first_token_seconds=self._first_token_seconds,
        )


def first_words(text: str) -> str:
    """The beginning of a text, for one line."""
    return text if len(text) <= _FIRST_CHARACTERS else f"{text[: _FIRST_CHARACTERS - 3]}..."


def _rate(tokens: int, seconds: float) -> float | None:
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def _shown_rate(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
