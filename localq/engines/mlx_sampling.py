"""GenerationOptions as functions of MLX arrays, meaning what llama.cpp's samplers mean. Knows no model.

Logits have shape (vocabulary_size,), float32; a filter puts -inf where it drops a token.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from localq.options import REPEAT_PENALTY_WINDOW_TOKENS, GenerationOptions

if TYPE_CHECKING:
    import mlx.core as mx

_SEED_BITS = 32


class Sampler:
    """Draws token after token by `options`, with random numbers of its own.

    What it keeps is evaluated: an array that is not can be computed in no other thread than the one that made it.
    """

    def __init__(self, options: GenerationOptions, context: Sequence[int]) -> None:
        """`context` are the tokens so far, prompt included; the repeat penalty looks at the newest of them."""
        import mlx.core as mx

        self._options = options
        self._penalizes = options.repeat_penalty != 1
        self._recent = mx.array(list(context[-REPEAT_PENALTY_WINDOW_TOKENS:]), dtype=mx.int32)
        self._key = mx.random.key(secrets.randbits(_SEED_BITS) if options.seed is None else options.seed)

    def draw(self, logits: mx.array) -> mx.array:
        """The next token's id, shape (1,), being evaluated, and with it the logits.

        It may go straight into the next forward pass.
        """
        import mlx.core as mx

        logits = filtered(logits, self._options, self._recent)
        if self._options.temperature == 0:
            token = mx.argmax(logits, keepdims=True)
        else:
            self._key, key = mx.random.split(self._key)
            token = mx.random.categorical(logits, shape=(1,), key=key)
        token = token.astype(mx.int32)
        if self._penalizes:
            self._recent = mx.concatenate([self._recent, token])[-REPEAT_PENALTY_WINDOW_TOKENS:]
        mx.async_eval(token, self._key, self._recent)  # type: ignore[no-untyped-call, unused-ignore]
        return token


def filtered(logits: mx.array, options: GenerationOptions, recent: mx.array) -> mx.array:
    """Logits to draw from: every stage of `options` that changes something, in its order.

    Greedy needs the repeat penalty alone: the filters always keep the likeliest token.
    """
    if options.repeat_penalty != 1:
        logits = repeat_penalty(logits, recent, options.repeat_penalty)
    if options.temperature == 0:
        return logits
    if options.top_k > 0:
        logits = top_k(logits, options.top_k)
    if options.top_p < 1:
        logits = top_p(logits, options.top_p)
    if options.min_p > 0:
        logits = min_p(logits, options.min_p)
    return logits if options.temperature == 1 else logits / options.temperature


def repeat_penalty(logits: mx.array, recent: mx.array, penalty: float) -> mx.array:
    """Make the tokens `recent` (ids, shape (n,)) less likely, each once however often it occurs.

    A positive logit is divided by the penalty, another one multiplied.
    """
    import mlx.core as mx

    found = logits[recent]
    # Equal ids get equal values, so the order in which they are written does not matter.
    return mx.put_along_axis(logits, recent, mx.where(found > 0, found / penalty, found * penalty), axis=-1)


def top_k(logits: mx.array, k: int) -> mx.array:
    """Keep the k likeliest tokens."""
    import mlx.core as mx

    drop_count = logits.shape[-1] - k
    if drop_count <= 0:
        return logits
    dropped = mx.argpartition(logits, kth=drop_count)[:drop_count]
    return mx.put_along_axis(logits, dropped, mx.array(-math.inf), axis=-1)


def top_p(logits: mx.array, p: float) -> mx.array:
    """Keep the likeliest tokens up to and with the one whose running sum of probabilities reaches p."""
    import mlx.core as mx

    order = mx.argsort(-logits)
    ordered = logits[order]
    sum_before = mx.cumsum(mx.softmax(ordered, precise=True), inclusive=False)
    return mx.put_along_axis(logits, order, mx.where(sum_before < p, ordered, -math.inf), axis=-1)


def min_p(logits: mx.array, p: float) -> mx.array:
    """Keep the tokens with at least p times the probability of the likeliest one."""
    import mlx.core as mx

    return mx.where(logits >= mx.max(logits) + math.log(p), logits, -math.inf)
