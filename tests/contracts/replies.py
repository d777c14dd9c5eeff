"""Prompts and replies that the contract tests share, and the distance between two models' logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localq.engines.base import Engine
from localq.options import GenerationOptions

PROMPT = [5, 17, 203, 91, 64, 8, 311, 42, 42, 150]
GREEDY = GenerationOptions(max_tokens=12)
SAMPLED = GenerationOptions(max_tokens=24, temperature=1.2, seed=7)


def generated(engine: Engine, options: GenerationOptions, prompt: list[int] = PROMPT) -> list[int]:
    engine.prefill(prompt)
    return list(engine.generate(options))


def all_logits(engine: Engine, tokens: Sequence[int]) -> np.ndarray:
    """After each of `tokens`, at least one, from an empty cache."""
    return np.concatenate(list(engine.logits_in_chunks(tokens)))


def long_prompt(length: int) -> list[int]:
    return [(7 * position) % 319 for position in range(length)]


def kl_divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of each row's distribution; computed in float64."""
    log_p, log_q = (log_softmax(rows.astype(np.float64)) for rows in (first, second))
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.max(axis=-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))
