"""What one process measures of its form: `localq.measure.speed` runs `measure` in a `WorkerProcess`.

What the rates mean is defined by `localq.generation.GenerationStatistics`.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from localq.errors import EngineError, UnsupportedOptionError
from localq.generation import GenerationStatistics, TextRules, stream
from localq.model import Model
from localq.options import GenerationOptions

if TYPE_CHECKING:
    from localq.text.tokenizer import Tokenizer

_WARM_UP_SECONDS = 0.1
_WARM_UP_GENERATED_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Run:
    """What is computed: tokens that are in the cache before the clock starts, then a prompt, then a reply."""

    depth_tokens: int
    prompt_tokens: int
    generated_tokens: int
    """1 where the prompt is measured."""

    @property
    def measures_prompt(self) -> bool:
        """The rate of a reply counts the tokens after the first one."""
        return self.generated_tokens == 1


def measure(
    model: Model, number: int, depth_tokens: int, prompt_tokens: int, generated_tokens: int, batch_tokens: int
) -> tuple[float, float]:
    """Warm up, then compute once: tokens per second, and seconds until the first token.

    The prompt is the random one of this `number`; the reply is greedy, and end tokens don't end it. Raises
    UnsupportedOptionError for a prompt at a depth where the engine computes what is in the cache again.
    """
    run = Run(depth_tokens, prompt_tokens, generated_tokens)
    plain = plain_token_ids(model.tokenizer)
    _warm_up(model, plain, run, number, batch_tokens)
    found = compute(model, plain, run, number)
    rate = found.prompt_tokens_per_second if run.measures_prompt else found.generated_tokens_per_second
    first_token_seconds = found.time_to_first_token_seconds
    assert rate is not None and first_token_seconds is not None  # there was a first token, and one more
    return rate, first_token_seconds


def compute(model: Model, plain: Sequence[int], run: Run, number: int) -> GenerationStatistics:
    """One run, on ids of `plain`. Raises as `measure`."""
    before = depth_ids(plain, run.depth_tokens)
    if before:
        model.engine.prefill(before)
    prompt = [*before, *random_prompt(plain, run.prompt_tokens, number)]
    options = GenerationOptions(max_tokens=run.generated_tokens)
    *_, last = stream(model.engine, TextRules(model.tokenizer), prompt, options)
    found = last.statistics
    assert found is not None  # the last chunk has them
    if found.generated_tokens != run.generated_tokens:
        raise EngineError(f"{found.generated_tokens} tokens came instead of {run.generated_tokens}")
    if run.measures_prompt and found.cached_prompt_tokens != run.depth_tokens:
        raise UnsupportedOptionError(
            f"the cache of this model can't be kept at {run.depth_tokens} tokens while prompts come and go",
            "measure prompts without -d, or generation alone (-p 0)",
        )
    return found


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


def _warm_up(model: Model, plain: Sequence[int], run: Run, number: int, batch_tokens: int) -> None:
    """Compute a batch of the prompt, or generate some tokens: at least once, and for a tenth of a second.

    That uses memory for the first time, which costs a prompt of 256 tokens 5% of its rate in a 1.2B model on a CPU; it
    compiles what is to be compiled, and fills the processor's caches after another process ran.
    """
    smaller = replace(
        run,
        prompt_tokens=min(run.prompt_tokens, batch_tokens),
        generated_tokens=min(run.generated_tokens, _WARM_UP_GENERATED_TOKENS),
    )
    deadline = time.perf_counter() + _WARM_UP_SECONDS
    # Two prompts in turn, neither of them that of `number`: none finds anything of itself in the cache.
    for other in itertools.cycle((number + 1, number + 2)):
        compute(model, plain, smaller, other)
        if time.perf_counter() > deadline:
            return
