"""Both engines draw from the same distribution: llama.cpp's own sampler chain is the oracle for MLX's."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from llama_cpp import llama_cpp as api

from localq.engines.llamacpp_sampling import sampler_chain
from localq.engines.mlx_sampling import Sampler, filtered
from localq.options import REPEAT_PENALTY_WINDOW_TOKENS, GenerationOptions

pytest.importorskip("mlx.core")  # not on every platform
import mlx.core as mx

PLAIN = GenerationOptions(temperature=1.0, seed=3)
# Longer than the window, with repetitions inside it and tokens that have already left it.
RECENT = [*range(40, 80), *[9] * 20, *range(100, 140), 9, 5]

STAGES = {
    "plain": PLAIN,
    "temperature": replace(PLAIN, temperature=0.6),
    "hot": replace(PLAIN, temperature=2.5),
    "top-k": replace(PLAIN, top_k=7),
    "top-k of all": replace(PLAIN, top_k=100_000),
    "top-p": replace(PLAIN, top_p=0.8),
    "narrow top-p": replace(PLAIN, top_p=0.01),
    "min-p": replace(PLAIN, min_p=0.05),
    "min-p of one": replace(PLAIN, min_p=1.0),
    "penalty": replace(PLAIN, repeat_penalty=1.4),
    "reward": replace(PLAIN, repeat_penalty=0.7),
    "top-p of what top-k leaves": replace(PLAIN, top_k=5, top_p=0.6),
    "min-p after top-p": replace(PLAIN, top_p=0.9, min_p=0.2),
    "temperature after the filters": replace(PLAIN, temperature=3.0, top_p=0.7, min_p=0.1),
    "everything": replace(PLAIN, temperature=0.8, top_k=50, top_p=0.9, min_p=0.05, repeat_penalty=1.2),
}


def some_logits(seed: int, size: int, spread: float) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def llamacpp_applied(logits: np.ndarray, options: GenerationOptions) -> Any:
    """llama.cpp's candidates after the whole chain, the last stage of which fills in the probabilities."""
    data = (api.llama_token_data * len(logits))(*((i, float(logit), 0.0) for i, logit in enumerate(logits)))
    candidates = api.llama_token_data_array(data, len(logits), -1, False)
    with sampler_chain(options, len(logits), RECENT) as chain:
        api.llama_sampler_apply(chain, ctypes.byref(candidates))
    return candidates


def llamacpp_probabilities(logits: np.ndarray, options: GenerationOptions) -> np.ndarray:
    candidates = llamacpp_applied(logits, options)
    probabilities = np.zeros(len(logits))
    for candidate in candidates.data[: candidates.size]:
        probabilities[candidate.id] = candidate.p
    return probabilities


def mlx_probabilities(logits: np.ndarray, options: GenerationOptions) -> np.ndarray:
    recent = mx.array(RECENT[-REPEAT_PENALTY_WINDOW_TOKENS:])
    return np.array(mx.softmax(filtered(mx.array(logits), options, recent)))


# More than 1,024 tokens take another path through llama.cpp's top-p.
@pytest.mark.parametrize("size", [200, 3000])
@pytest.mark.parametrize("spread", [0.5, 4.0])
@pytest.mark.parametrize("options", STAGES.values(), ids=STAGES.keys())
def test_both_engines_keep_the_same_tokens_with_the_same_probabilities(
    options: GenerationOptions, size: int, spread: float
) -> None:
    for seed in range(4):
        logits = some_logits(seed, size, spread)
        expected, found = llamacpp_probabilities(logits, options), mlx_probabilities(logits, options)
        assert np.array_equal(expected > 0, found > 0)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in STAGES if name not in ("plain", "top-k of all")])
def test_every_stage_changes_the_distribution(name: str) -> None:
    logits = some_logits(0, 200, 1.0)
    assert not np.allclose(mlx_probabilities(logits, STAGES[name]), mlx_probabilities(logits, PLAIN))


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_greedy_takes_the_same_token_whatever_the_filters(penalty: float) -> None:
    options = GenerationOptions(temperature=0, top_k=3, top_p=0.5, min_p=0.5, repeat_penalty=penalty)
    for seed in range(20):
        logits = some_logits(seed, 200, 3.0)
        candidates = llamacpp_applied(logits, options)
        expected = candidates.data[candidates.selected].id
        assert Sampler(options, RECENT).draw(mx.array(logits)).item() == expected


def test_a_sampler_draws_as_often_as_the_distribution_says() -> None:
    options = replace(PLAIN, top_k=4, temperature=1.5)
    logits = some_logits(5, 50, 1.0)
    sampler = Sampler(options, RECENT)
    drawn = np.array([sampler.draw(mx.array(logits)).item() for _ in range(3000)])
    frequencies = np.bincount(drawn, minlength=50) / len(drawn)
    # Four standard deviations of a frequency near one half; the seed is fixed, so this can't fail by chance.
    assert np.abs(frequencies - mlx_probabilities(logits, options)).max() < 4 * 0.5 / np.sqrt(3000)


def test_a_drawn_token_enters_the_window_and_pushes_the_oldest_one_out() -> None:
    options = GenerationOptions(temperature=0, repeat_penalty=10.0)
    oldest, favourite = 150, 160
    sampler = Sampler(options, [oldest, *range(63)])
    logits = np.zeros(200, dtype=np.float32)
    logits[[oldest, favourite]] = 7.0, 6.0
    # The oldest token is penalised until the favourite has taken its place; then both are.
    assert [sampler.draw(mx.array(logits)).item() for _ in range(3)] == [favourite, oldest, oldest]


def test_drawing_leaves_the_logits_as_they_are() -> None:
    logits = mx.array(some_logits(1, 200, 1.0))
    before = np.array(logits)
    Sampler(STAGES["everything"], RECENT).draw(logits).item()
    assert np.array_equal(np.array(logits), before)
