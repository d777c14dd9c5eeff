"""GenerationOptions as a chain of llama.cpp's own samplers."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from localq.engines.base import Drawn, check_bias
from localq.options import PENALTY_WINDOW_TOKENS, GenerationOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ChainSampler:
    """A `llama_sampler *` that draws by `options`; it has its own random numbers."""

    def __init__(self, options: GenerationOptions, vocabulary_size: int, context: Sequence[int]) -> None:
        """`context` are the tokens so far, prompt included; the penalties use the newest of them."""
        from llama_cpp import llama_cpp as api

        check_bias(options, vocabulary_size)
        parameters = api.llama_sampler_chain_default_params()
        parameters.no_perf = True
        self._vocabulary_size = vocabulary_size
        self._keeps_logits = options.logprobs is not None
        self.chain: Any = api.llama_sampler_chain_init(parameters)
        self.close = weakref.finalize(self, api.llama_sampler_free, self.chain)
        for stage in _stages(options, vocabulary_size):
            api.llama_sampler_chain_add(self.chain, stage)
        if options.penalizes:
            for token in context[-PENALTY_WINDOW_TOKENS:]:
                self.accept(token)

    def accept(self, token_id: int) -> None:
        """See `SequenceSampler.accept`."""
        from llama_cpp import llama_cpp as api

        api.llama_sampler_accept(self.chain, token_id)

    def draw(self, context: Any, output: int, mask: NDArray[np.bool_] | None = None) -> int:
        """The next id, from the logits that a context has for an output; they stay as they are."""
        from llama_cpp import llama_cpp as api

        if mask is None:
            token: int = api.llama_sampler_sample(self.chain, context, output)
            return token
        row = logits_row(context, output, self._vocabulary_size)
        before = row.copy()
        row[~mask] = -float("inf")
        token = api.llama_sampler_sample(self.chain, context, output)
        row[:] = before
        return token

    def drawn(self, context: Any, output: int, mask: NDArray[np.bool_] | None) -> Drawn:
        """As `draw`, with the logits where the options want log-probabilities."""
        logits = logits_row(context, output, self._vocabulary_size).copy() if self._keeps_logits else None
        return Drawn(self.draw(context, output, mask), logits)


def logits_row(context: Any, output: int, vocabulary_size: int) -> NDArray[np.float32]:
    """The logits of an output: llama.cpp's own memory, until the next pass."""
    import numpy as np
    from llama_cpp import llama_cpp as api

    return np.ctypeslib.as_array(api.llama_get_logits_ith(context, output), (vocabulary_size,))


def _stages(options: GenerationOptions, vocabulary_size: int) -> Iterator[Any]:
    # A stage that would change nothing is left out: each one visits the whole vocabulary.
    from llama_cpp import llama_cpp as api

    keep_at_least = 1
    if options.logit_bias:
        # llama.cpp copies it.
        biases = (api.llama_logit_bias * len(options.logit_bias))(*options.logit_bias.items())
        yield api.llama_sampler_init_logit_bias(vocabulary_size, len(biases), biases)
    if options.penalizes:
        penalties = options.repeat_penalty, options.frequency_penalty, options.presence_penalty
        yield api.llama_sampler_init_penalties(vocabulary_size, PENALTY_WINDOW_TOKENS, *penalties)
    if options.greedy:
        yield api.llama_sampler_init_greedy()
        return
    if 0 < options.top_k < vocabulary_size:
        yield api.llama_sampler_init_top_k(options.top_k)
    if options.top_p < 1:
        yield api.llama_sampler_init_top_p(options.top_p, keep_at_least)
    if options.min_p > 0:
        yield api.llama_sampler_init_min_p(options.min_p, keep_at_least)
    if options.temperature != 1:
        yield api.llama_sampler_init_temp(options.temperature)
    # With LLAMA_DEFAULT_SEED, llama.cpp draws a random one.
    yield api.llama_sampler_init_dist(api.LLAMA_DEFAULT_SEED if options.seed is None else options.seed)
