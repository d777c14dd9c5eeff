"""The smallest engine: it has no model and replays replies that were given to it."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from localq.engines.base import (
    PREFILL_CHUNK_TOKENS,
    Constraint,
    Drawn,
    EngineState,
    Feed,
    Guide,
    PrefillProgress,
    SequenceTokens,
    check_bias,
    check_ids,
    check_prompt,
    check_window,
    chunks,
    rows_per_chunk,
)
from localq.errors import EngineError
from localq.options import DEFAULT_CONTEXT_LENGTH_TOKENS, GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NO_TOKEN = -1
"""Instead of an id: all logits of the row are 0."""


class ScriptedSampler:
    """See `SequenceSampler`: a script draws nothing."""

    def __init__(self, keeps_logits: bool) -> None:
        self.keeps_logits = keeps_logits

    def accept(self, token_id: int) -> None:
        """See `SequenceSampler.accept`."""

    def close(self) -> None:
        """See `SequenceSampler.close`."""


class ScriptedEngine:
    """Answers the first prompt that is computed to its end with the first reply, the next one with the next.

    Its logits are 1 for the next id of the reply and 0 for all others; options other than `max_tokens` have
    no effect. A reply without an end token ends after its last id, as if the context were full.
    """

    def __init__(
        self,
        replies: Sequence[Sequence[int]],
        context_length: int = DEFAULT_CONTEXT_LENGTH_TOKENS,
        vocabulary_size: int = 256,
        sequences: int = 1,
    ) -> None:
        for reply in replies:
            check_ids(reply, vocabulary_size)
        self._replies = [list(reply) for reply in replies]
        self.context_length = context_length
        self.vocabulary_size = vocabulary_size
        self.state_settings: Mapping[str, str | bool] = {"engine": "scripted"}
        self.sequences, self.chunk_tokens = sequences, PREFILL_CHUNK_TOKENS
        self.step_tokens = self.chunk_tokens
        self._cached = [SequenceTokens() for _ in range(sequences)]
        self._rests: list[list[int] | None] = [None] * sequences
        self._closed = False
        self.prompts: list[list[int]] = []
        """Every prompt that was computed to its end, oldest first."""

    def prefill(self, prompt: Sequence[int], on_progress: PrefillProgress | None = None) -> int:
        """See `Engine.prefill`. Raises EngineError when no reply is left."""
        reused = self.begin(0, prompt)
        for chunk in chunks(prompt, reused):
            self._cached[0].append(chunk)
            if on_progress is not None:
                on_progress(len(self._cached[0].ids), len(prompt))
        self._rests[0] = self._next_reply(prompt)
        return reused

    def _next_reply(self, prompt: Sequence[int]) -> list[int]:
        if len(self.prompts) == len(self._replies):
            raise EngineError(f"all {len(self._replies)} replies of the script were given already")
        self.prompts.append(list(prompt))
        return list(self._replies[len(self.prompts) - 1])

    def generate(self, options: GenerationOptions, constraint: Constraint | None = None) -> Generator[int, None, None]:
        """See `Engine.generate`. What a constraint forces is part of the reply, in the place of the script."""
        rest = self._require_reply()
        check_bias(options, self.vocabulary_size)
        guide = Guide(constraint, options, self.vocabulary_size)
        left = min(options.max_tokens, self.context_length - len(self._cached[0].ids))
        while rest and left > 0:
            following = guide.follow(self._allowed(rest[0], guide.mask()))[:left]
            left -= len(following)
            yield from following
            self._cached[0].append(following)
            del rest[: len(following)]

    def sampler(self, options: GenerationOptions, context: Sequence[int]) -> ScriptedSampler:
        """See `Engine.sampler`."""
        check_bias(options, self.vocabulary_size)
        return ScriptedSampler(options.logprobs is not None)

    def reusable(self, sequence: int, prompt: Sequence[int]) -> int:
        """See `Engine.reusable`."""
        return self._cached[sequence].reusable(prompt)

    def begin(self, sequence: int, prompt: Sequence[int]) -> int:
        """See `Engine.begin`."""
        self._require_open()
        check_prompt(prompt, self.vocabulary_size, self.context_length)
        reused = self.reusable(sequence, prompt)
        self._cached[sequence].cut(reused)
        self._rests[sequence] = None
        return reused

    def step(self, feeds: Sequence[Feed]) -> list[Drawn | None]:
        """See `Engine.step`."""
        self._require_open()
        return [self._fed(feed) for feed in feeds]

    def _fed(self, feed: Feed) -> Drawn | None:
        cached = self._cached[feed.sequence]
        cached.append(feed.tokens)
        rest = self._rests[feed.sequence]
        if rest is not None:
            del rest[: len(feed.tokens)]
        if feed.sampler is None:
            return None
        if rest is None:
            rest = self._rests[feed.sequence] = self._next_reply(cached.ids)
        if not rest:
            raise EngineError("the script is over")
        return Drawn(self._allowed(rest[0], feed.mask), self._rows(rest[:1])[0] if feed.sampler.keeps_logits else None)

    def _allowed(self, token: int, mask: NDArray[np.bool_] | None) -> int:
        """The token of the script, or where the mask does not allow it the first that it allows."""
        return token if mask is None or mask[token] else int(mask.argmax())

    def logits(self) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        row: NDArray[np.float32] = self._rows(self._require_reply()[:1])[0]
        return row

    def logits_in_chunks(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """See `Engine.logits_in_chunks`: each row predicts the next of `tokens`, and the last one predicts nothing."""
        self._require_open()
        check_window(tokens, self.vocabulary_size, self.context_length)
        self._cached[0].ids = list(tokens)
        following = [*tokens[1:], _NO_TOKEN][: len(tokens)]
        for chunk in chunks(following, first, rows_per_chunk(self.vocabulary_size)):
            yield self._rows(chunk)

    def state(self, sequence: int = 0) -> EngineState:
        """See `Engine.state`: only the tokens."""
        self._require_open()
        self._rests[sequence] = None
        return EngineState(tuple(self._cached[sequence].ids), ())

    def restore(self, state: EngineState, sequence: int = 0) -> None:
        """See `Engine.restore`."""
        self._require_open()
        self._cached[sequence].ids, self._rests[sequence] = list(state.tokens), None
        if state.arrays:
            self._cached[sequence].cut(0)
            raise EngineError("a script has no keys and values")

    def close(self) -> None:
        """See `Engine.close`."""
        self._closed = True

    def _rows(self, most_likely: Sequence[int]) -> NDArray[np.float32]:
        import numpy as np

        rows = np.zeros((max(len(most_likely), 1), self.vocabulary_size), dtype=np.float32)
        for row, token in zip(rows, most_likely, strict=False):
            if token >= 0:
                row[token] = 1
        return rows

    def _require_open(self) -> None:
        if self._closed:
            raise EngineError("this model has been closed")

    def _require_reply(self) -> list[int]:
        self._require_open()
        rest = self._rests[0]
        if rest is None:
            raise EngineError("there are no logits: no prompt was computed to its end")
        return rest
