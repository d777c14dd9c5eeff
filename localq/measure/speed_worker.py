"""What one process measures of its form: `localq.measure.speed` runs `measure` in a `WorkerProcess`.

What the rates mean is defined by `localq.generation.GenerationStatistics`.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from localq.errors import EngineError, UnsupportedOptionError
from localq.generation import GenerationStatistics, TextRules, stream
from localq.model import Model
from localq.options import GenerationOptions

if TYPE_CHECKING:
    from localq.text.tokenizer import Tokenizer

_WARM_UP_SECONDS = 0.1
_WARM_UP_GENERATED_TOKENS = 8


def measure(
    model: Model, number: int, depth_tokens: int, prompt_tokens: int, generated_tokens: int, batch_tokens: int
) -> tuple[float, float]:
    """Warm up, then compute once: tokens per second, and seconds until the first token.

    The rate is that of the prompt where one token is generated. The prompt is the random one of this `number`, behind
    `depth_tokens` that are in the cache before the clock starts; the reply is greedy, and end tokens don't end it.
    Raises UnsupportedOptionError for a prompt at a depth where the engine computes what is in the cache again.

    Warming up is a batch of the prompt or some tokens of the reply: at least once, and for a tenth of a second. That
    uses memory for the first time, which costs a prompt of 256 tokens 5% of its rate in a 1.2B model on a CPU; it
    compiles what is to be compiled, and fills the processor's caches after another process ran.
    """
    smaller = min(prompt_tokens, batch_tokens), min(generated_tokens, _WARM_UP_GENERATED_TOKENS)
    deadline = time.perf_counter() + _WARM_UP_SECONDS
    # Two prompts in turn, neither of them that of `number`: none finds anything of itself in the cache.
    for other in itertools.cycle((number + 1, number + 2)):
        compute(model, other, depth_tokens, *smaller)
        if time.perf_counter() > deadline:
            break
    found = compute(model, number, depth_tokens, prompt_tokens, generated_tokens)
    rate = found.prompt_tokens_per_second if generated_tokens == 1 else found.generated_tokens_per_second
    first_token_seconds = found.time_to_first_token_seconds
    assert rate is not None and first_token_seconds is not None  # there was a first token, and one more
    return rate, first_token_seconds


def compute(
    model: Model, number: int, depth_tokens: int, prompt_tokens: int, generated_tokens: int
) -> GenerationStatistics:
    """What `measure` computes, once."""
    plain = _plain_token_ids(model)
    before = depth_ids(plain, depth_tokens)
    if before:
        model.engine.prefill(before)
    prompt = [*before, *random_prompt(plain, prompt_tokens, number)]
    options = GenerationOptions(max_tokens=generated_tokens)
    *_, last = stream(model.engine, TextRules(model.tokenizer), prompt, options)
    found = last.statistics
    assert found is not None  # the last chunk has them
    if found.generated_tokens != generated_tokens:
        raise EngineError(f"{found.generated_tokens} tokens came instead of {generated_tokens}")
    if generated_tokens == 1 and found.cached_prompt_tokens != depth_tokens:
        raise UnsupportedOptionError(
            f"the cache of this model can't be kept at {depth_tokens} tokens while prompts come and go",
            "measure prompts without -d, or generation alone (-p 0)",
        )
    return found


@lru_cache(maxsize=1)
def _plain_token_ids(model: Model) -> list[int]:
    return plain_token_ids(model.tokenizer)


def plain_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids of the vocabulary without special and other added tokens, ascending."""
    added = set(tokenizer.added_tokens.values())
    return [token for token in range(tokenizer.vocabulary_size) if token not in added]


def random_prompt(plain: Sequence[int], count: int, number: int) -> list[int]:
    """`count` ids: the same for every form of a model, and others for every number.

    The first id differs from that of the number before and from that of `depth_ids`, so that an engine finds nothing
    of the prompt in its cache.
    """
    return [plain[number % (len(plain) - 1)], *random.Random(number).choices(plain, k=count - 1)]


def depth_ids(plain: Sequence[int], count: int) -> list[int]:
    """The ids that are in the cache before a prompt: always the same, more of them for a greater depth.

    So an engine that keeps a prefix still has them after the run before.
    """
    return [plain[-1], *random.Random("depth").choices(plain, k=count - 1)] if count else []
