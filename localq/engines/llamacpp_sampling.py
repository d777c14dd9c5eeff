"""GenerationOptions as a chain of llama.cpp's own samplers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from localq.options import PENALTY_WINDOW_TOKENS, GenerationOptions


@contextmanager
def sampler_chain(options: GenerationOptions, vocabulary_size: int, context: Sequence[int]) -> Iterator[Any]:
    """A `llama_sampler *` that draws by `options`, freed at the end of the block.

    `context` are the tokens so far, prompt included; the penalties use the newest of them.
    """
    from llama_cpp import llama_cpp as api

    parameters = api.llama_sampler_chain_default_params()
    parameters.no_perf = True
    chain = api.llama_sampler_chain_init(parameters)
    try:
        for stage in _stages(options, vocabulary_size):
            api.llama_sampler_chain_add(chain, stage)
        if options.penalizes:
            for token in context[-PENALTY_WINDOW_TOKENS:]:
                api.llama_sampler_accept(chain, token)
        yield chain
    finally:
        api.llama_sampler_free(chain)


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
