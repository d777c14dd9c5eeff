"""An engine without a model: it replays replies. For tests, and for showing what an engine is."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from localq.engines.base import (
    EngineState,
    PrefillProgress,
    check_bias,
    check_ids,
    check_prompt,
    check_window,
    chunks,
    rows_per_chunk,
    shared_prefix_tokens,
)
from localq.errors import EngineError
from localq.options import DEFAULT_CONTEXT_LENGTH_TOKENS, GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NOTHING = -1
"""In the place of an id that no logit stands out for."""


class ScriptedEngine:
    """Answers the first completed prefill with the first reply, the next one with the next.

    Its logits are 1 for the next id of the reply and 0 for all others; options other than `max_tokens` have
    no effect. A reply ends where its ids end, as if the context were full: give it an end token to be
    stopped by one.
    """

    def __init__(
        self,
        replies: Sequence[Sequence[int]],
        context_length: int = DEFAULT_CONTEXT_LENGTH_TOKENS,
        vocabulary_size: int = 256,
    ) -> None:
        for reply in replies:
            check_ids(reply, vocabulary_size)
        self._replies = [list(reply) for reply in replies]
        self._context_length = context_length
        self._vocabulary_size = vocabulary_size
        self._tokens: list[int] = []
        self._rest: list[int] | None = None
        self._closed = False
        self.prompts: list[list[int]] = []
        """Every prompt that was computed to its end, oldest first."""

    @property
    def context_length(self) -> int:
        """Tokens of prompt and reply that fit."""
        return self._context_length

    @property
    def vocabulary_size(self) -> int:
        """Number of logits per token."""
        return self._vocabulary_size

    def prefill(self, prompt: Sequence[int], on_progress: PrefillProgress | None = None) -> int:
        """See `Engine.prefill`. Raises EngineError when no reply is left."""
        self._require_open()
        check_prompt(prompt, self._vocabulary_size, self._context_length)
        reused = shared_prefix_tokens(self._tokens, prompt)
        del self._tokens[reused:]
        self._rest = None
        for chunk in chunks(prompt, reused):
            self._tokens.extend(chunk)
            if on_progress is not None:
                on_progress(len(self._tokens), len(prompt))
        if len(self.prompts) == len(self._replies):
            raise EngineError(f"the script has {len(self._replies)} replies, and all of them were given")
        self._rest = list(self._replies[len(self.prompts)])
        self.prompts.append(list(prompt))
        return reused

    def generate(self, options: GenerationOptions) -> Generator[int, None, None]:
        """See `Engine.generate`."""
        rest = self._require_reply()
        check_bias(options, self._vocabulary_size)
        limit = min(options.max_tokens, self._context_length - len(self._tokens), len(rest))
        for _ in range(limit):
            yield rest[0]
            self._tokens.append(rest.pop(0))

    def logits(self) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        row: NDArray[np.float32] = self._rows(self._require_reply()[:1])[0]
        return row

    def logits_in_chunks(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """See `Engine.logits_in_chunks`: each row foretells the next of `tokens`, and the last foretells nothing."""
        self._require_open()
        check_window(tokens, self._vocabulary_size, self._context_length)
        self._tokens = list(tokens)
        following = [*tokens[1:], _NOTHING][: len(tokens)]
        for chunk in chunks(following, first, rows_per_chunk(self._vocabulary_size)):
            yield self._rows(chunk)

    @property
    def state_settings(self) -> Mapping[str, str | bool]:
        """See `Engine.state_settings`."""
        return {"engine": "scripted"}

    def state(self) -> EngineState:
        """See `Engine.state`: nothing but the tokens."""
        self._require_open()
        self._rest = None
        return EngineState(tuple(self._tokens), ())

    def restore(self, state: EngineState) -> None:
        """See `Engine.restore`."""
        self._require_open()
        self._tokens, self._rest = list(state.tokens), None
        if state.arrays:
            self._tokens.clear()
            raise EngineError("a script has no keys and values")

    def close(self) -> None:
        """See `Engine.close`."""
        self._closed = True

    def _rows(self, likeliest: Sequence[int]) -> NDArray[np.float32]:
        import numpy as np

        rows = np.zeros((max(len(likeliest), 1), self._vocabulary_size), dtype=np.float32)
        for row, token in zip(rows, likeliest, strict=False):
            if token >= 0:
                row[token] = 1
        return rows

    def _require_open(self) -> None:
        if self._closed:
            raise EngineError("this model has been closed")

    def _require_reply(self) -> list[int]:
        self._require_open()
        if self._rest is None:
            raise EngineError("there are no logits: no prompt was computed to its end")
        return self._rest
