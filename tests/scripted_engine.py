"""The smallest engine: it has no model and replays replies that were given to it."""

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

_NO_TOKEN = -1
"""Instead of an id: all logits of the row are 0."""


class ScriptedEngine:
    """Answers the first completed prefill with the first reply, the next one with the next.

    Its logits are 1 for the next id of the reply and 0 for all others; options other than `max_tokens` have
    no effect. A reply without an end token ends after its last id, as if the context were full.
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
        self.context_length = context_length
        self.vocabulary_size = vocabulary_size
        self.state_settings: Mapping[str, str | bool] = {"engine": "scripted"}
        self._tokens: list[int] = []
        self._rest: list[int] | None = None
        self._closed = False
        self.prompts: list[list[int]] = []
        """Every prompt that was computed to its end, oldest first."""

    def prefill(self, prompt: Sequence[int], on_progress: PrefillProgress | None = None) -> int:
        """See `Engine.prefill`. Raises EngineError when no reply is left."""
        self._require_open()
        check_prompt(prompt, self.vocabulary_size, self.context_length)
        reused = shared_prefix_tokens(self._tokens, prompt)
        del self._tokens[reused:]
        self._rest = None
        for chunk in chunks(prompt, reused):
            self._tokens.extend(chunk)
            if on_progress is not None:
                on_progress(len(self._tokens), len(prompt))
        if len(self.prompts) == len(self._replies):
            raise EngineError(f"all {len(self._replies)} replies of the script were given already")
        self._rest = list(self._replies[len(self.prompts)])
        self.prompts.append(list(prompt))
        return reused

    def generate(self, options: GenerationOptions) -> Generator[int, None, None]:
        """See `Engine.generate`."""
        rest = self._require_reply()
        check_bias(options, self.vocabulary_size)
        limit = min(options.max_tokens, self.context_length - len(self._tokens), len(rest))
        for _ in range(limit):
            yield rest[0]
            self._tokens.append(rest.pop(0))

    def logits(self) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        row: NDArray[np.float32] = self._rows(self._require_reply()[:1])[0]
        return row

    def logits_in_chunks(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """See `Engine.logits_in_chunks`: each row predicts the next of `tokens`, and the last one predicts nothing."""
        self._require_open()
        check_window(tokens, self.vocabulary_size, self.context_length)
        self._tokens = list(tokens)
        following = [*tokens[1:], _NO_TOKEN][: len(tokens)]
        for chunk in chunks(following, first, rows_per_chunk(self.vocabulary_size)):
            yield self._rows(chunk)

    def state(self) -> EngineState:
        """See `Engine.state`: only the tokens."""
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
        if self._rest is None:
            raise EngineError("there are no logits: no prompt was computed to its end")
        return self._rest
