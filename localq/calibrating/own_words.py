"""Text that a model writes itself, to calibrate it on: what it is most likely to say.

A model is calibrated best on text of its own kind. Measured on two small models (benchmarks/README.md): its own words
beside localq's text did better than that text alone, and than other text of the kind that the model was trained on.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from localq.engines.base import Feed
from localq.engines.llamacpp import open_engine
from localq.measure.windows import Text, begin_token
from localq.options import GenerationOptions, LoadOptions
from localq.text.tokenizer import Tokenizer

_SEQUENCES = 16
_MOST_TOKENS, _LEAST_TOKENS = 512, 64
"""Of each sequence."""
_LARGE_PARAMETERS = 100_000_000
"""A larger model writes less, so that it does not take long; one of 800 million nothing."""


def write_text(model: Path, tokenizer: Tokenizer, parameters: int, threads: int | None) -> Text | None:
    """What a `.gguf` file writes at temperature 1, with fixed seeds; None for a large model."""
    count = min(_MOST_TOKENS, _MOST_TOKENS * _LARGE_PARAMETERS // parameters)
    if count < _LEAST_TOKENS:
        return None
    first = begin_token(tokenizer)
    begun = tokenizer.encode("\n", add_special_tokens=False) if first is None else [first]
    options = LoadOptions(threads=threads, sequences=_SEQUENCES)
    written: list[list[int]] = [[] for _ in range(_SEQUENCES)]
    with contextlib.closing(open_engine(model, options, len(begun) + count + 1)) as engine:
        samplers = [
            engine.sampler(GenerationOptions(temperature=1.0, seed=seed, max_tokens=count), begun)
            for seed in range(_SEQUENCES)
        ]
        for number in range(_SEQUENCES):
            engine.begin(number, begun)
        feeds = [Feed(number, begun, sampler) for number, sampler in enumerate(samplers)]
        for _ in range(count):
            drawn = [row.token_id for row in engine.step(feeds) if row is not None]
            for ids, token in zip(written, drawn, strict=True):
                ids.append(token)
            feeds = [Feed(number, (token,), samplers[number]) for number, token in enumerate(drawn)]
    content = "\n".join(tokenizer.decode(ids) for ids in written)
    return Text("written by the model", content, hashlib.sha256(content.encode()).hexdigest())
