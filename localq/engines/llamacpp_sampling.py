"""GenerationOptions as a chain of llama.cpp's own samplers. Knows no model and no logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from localq.options import REPEAT_PENALTY_WINDOW_TOKENS, GenerationOptions


@contextmanager
def sampler_chain(options: GenerationOptions, vocabulary_size: int, context: Sequence[int]) -> Iterator[Any]:
    """A `llama_sampler *` that draws by `options`, freed on leaving.

    `context` are the tokens so far, prompt included; the repeat penalty looks at the newest of them.
    """
    from llama_cpp import llama_cpp as api

    parameters = api.llama_sampler_chain_default_params()
    parameters.no_perf = True
    chain = api.llama_sampler_chain_init(parameters)
    try:
        for stage in _stages(options, vocabulary_size):
            api.llama_sampler_chain_add(chain, stage)
        if options.repeat_penalty != 1:
            for token in context[-REPEAT_PENALTY_WINDOW_TOKENS:]:
                api.llama_sampler_accept(chain, token)
        yield chain
    finally:
        api.llama_sampler_free(chain)


def _stages(options: GenerationOptions, vocabulary_size: int) -> Iterator[Any]:
    # A stage that would change nothing is left out: each one passes over the whole vocabulary.
    from llama_cpp import llama_cpp as api

    keep_at_least = 1
    if options.repeat_penalty != 1:
        yield api.llama_sampler_init_penalties(
            vocabulary_size, REPEAT_PENALTY_WINDOW_TOKENS, options.repeat_penalty, 0.0, 0.0
        )
    if options.temperature == 0:
        # The filters always keep the likeliest token, so greedy needs none of them.
        yield api.llama_sampler_init_greedy()
        return
    if options.top_k > 0:
        yield api.llama_sampler_init_top_k(options.top_k)
    if options.top_p < 1:
        yield api.llama_sampler_init_top_p(options.top_p, keep_at_least)
    if options.min_p > 0:
        yield api.llama_sampler_init_min_p(options.min_p, keep_at_least)
    if options.temperature != 1:
        yield api.llama_sampler_init_temp(options.temperature)
    # LLAMA_DEFAULT_SEED makes llama.cpp draw a fresh one.
    yield api.llama_sampler_init_dist(api.LLAMA_DEFAULT_SEED if options.seed is None else options.seed)
