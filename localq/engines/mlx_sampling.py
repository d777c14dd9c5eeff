"""GenerationOptions as functions of MLX arrays, with the same meaning as llama.cpp's samplers.

Logits have shape (vocabulary_size,), float32; a filter sets those of dropped tokens to -inf.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from localq.options import PENALTY_WINDOW_TOKENS, GenerationOptions

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np
    from numpy.typing import NDArray

_SEED_BITS = 32
_ROUNDS_TO_ONE = 1 - 2**-25
"""A top-p from here on is 1 in float32, the type that llama.cpp has for it: it filters nothing."""
_SMALLEST_TOP_P = 1e-30
"""A smaller one could be 0 in float32 and drop all tokens."""


class Sampler:
    """Draws token after token by `options`, with its own random numbers.

    All arrays that it keeps are evaluated: only the thread that made an array can evaluate it.
    """

    def __init__(self, options: GenerationOptions, context: Sequence[int]) -> None:
        """`context` are the tokens so far, prompt included; the penalties use the newest of them."""
        import mlx.core as mx

        self._options = options
        self.keeps_logits = options.logprobs is not None
        self._biased = mx.array(list(options.logit_bias.keys()), dtype=mx.int32)
        self._biases = mx.array(list(options.logit_bias.values()), dtype=mx.float32)
        self._recent = mx.array(list(context[-PENALTY_WINDOW_TOKENS:]), dtype=mx.int32)
        self._key = mx.random.key(secrets.randbits(_SEED_BITS) if options.seed is None else options.seed)
        mx.eval(self._biased, self._biases, self._recent, self._key)

    def draw(self, logits: mx.array, mask: NDArray[np.bool_] | None = None) -> mx.array:
        """The next token's id, shape (1,). Its evaluation, and that of the logits, has begun.

        It can be given to the next forward pass at once. `mask` says which tokens may be drawn.
        """
        import mlx.core as mx

        logits = self.filtered(logits if mask is None else mx.where(mx.array(mask), logits, -math.inf))
        if self._options.greedy:
            token = mx.argmax(logits, keepdims=True)
        else:
            self._key, key = mx.random.split(self._key)
            token = mx.random.categorical(logits, shape=(1,), key=key)
        token = token.astype(mx.int32)
        self._note(token)
        mx.async_eval(token, self._key, self._recent)  # type: ignore[no-untyped-call, unused-ignore]
        return token

    def accept(self, token_id: int) -> None:
        """See `SequenceSampler.accept`."""
        import mlx.core as mx

        self._note(mx.array([token_id], dtype=mx.int32))
        mx.eval(self._recent)

    def close(self) -> None:
        """See `SequenceSampler.close`."""

    def _note(self, token: mx.array) -> None:
        import mlx.core as mx

        if self._options.penalizes:
            self._recent = mx.concatenate([self._recent, token])[-PENALTY_WINDOW_TOKENS:]

    def filtered(self, logits: mx.array) -> mx.array:
        """Logits to draw from: after all stages of the options that change something, in their order."""
        options = self._options
        if options.logit_bias:
            logits = logits.at[self._biased].add(self._biases)
        if options.penalizes:
            logits = penalized(logits, self._recent, options)
        if options.greedy:
            return logits
        if options.top_k > 0:
            logits = top_k(logits, options.top_k)
        if options.top_p < _ROUNDS_TO_ONE:
            logits = top_p(logits, options.top_p)
        if options.min_p > 0:
            logits = min_p(logits, options.min_p)
        return logits if options.temperature == 1 else logits / options.temperature


def penalized(logits: mx.array, recent: mx.array, options: GenerationOptions) -> mx.array:
    """Make the tokens `recent` (ids, shape (n,)) less likely.

    The repeat penalty divides a positive logit, and multiplies any other, once per token. Then the presence penalty
    is subtracted once, and the frequency penalty as often as the token occurs.
    """
    import mlx.core as mx

    found = logits[recent]
    found = mx.where(found > 0, found / options.repeat_penalty, found * options.repeat_penalty)
    counts = (recent[:, None] == recent).sum(axis=1)
    found -= counts * options.frequency_penalty + options.presence_penalty
    # Equal ids get equal values, so the order in which they are written does not matter.
    return mx.put_along_axis(logits, recent, found, axis=-1)


def top_k(logits: mx.array, k: int) -> mx.array:
    """Keep the k most likely tokens."""
    import mlx.core as mx

    drop_count = logits.shape[-1] - k
    if drop_count <= 0:
        return logits
    dropped = mx.argpartition(logits, kth=drop_count)[:drop_count]
    return mx.put_along_axis(logits, dropped, mx.array(-math.inf), axis=-1)


def top_p(logits: mx.array, p: float) -> mx.array:
    """Keep the most likely tokens, up to and including the one at which the sum of probabilities reaches p."""
    import mlx.core as mx

    order = mx.argsort(-logits)
    ordered = logits[order]
    sum_before = mx.cumsum(mx.softmax(ordered, precise=True), inclusive=False)
    kept = sum_before < max(p, _SMALLEST_TOP_P)
    return mx.put_along_axis(logits, order, mx.where(kept, ordered, -math.inf), axis=-1)


def min_p(logits: mx.array, p: float) -> mx.array:
    """Keep the tokens with at least p times the probability of the most likely one."""
    import mlx.core as mx

    return mx.where(logits >= mx.max(logits) + math.log(p), logits, -math.inf)
