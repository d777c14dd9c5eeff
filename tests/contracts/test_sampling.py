"""Both engines draw from the same distribution: llama.cpp's own sampler chain is the oracle for MLX's."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import llama_cpp as api

from localq.engines.llamacpp_sampling import ChainSampler
from localq.engines.mlx_sampling import Sampler
from localq.options import GenerationOptions

pytest.importorskip("mlx.core")  # not on every platform
import mlx.core as mx

PLAIN = GenerationOptions(temperature=1.0, seed=3)
# Longer than the window, with repetitions in it and tokens before it.
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
    "presence": replace(PLAIN, presence_penalty=0.7),
    "absence": replace(PLAIN, presence_penalty=-0.7),
    "frequency": replace(PLAIN, frequency_penalty=0.3),
    "frequent": replace(PLAIN, frequency_penalty=-0.2),
    "three penalties": replace(PLAIN, repeat_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.2),
    "bias": replace(PLAIN, logit_bias={0: 3.0, 9: -2.5, 199: 1.0}),
    "ban": replace(PLAIN, logit_bias={token: -math.inf for token in range(0, 200, 2)}),
    "penalty of what is banned": replace(PLAIN, logit_bias={9: -math.inf, 5: 4.0}, repeat_penalty=1.5),
    "greedily hot": replace(PLAIN, temperature=1e-3),
    "top-p of what top-k leaves": replace(PLAIN, top_k=5, top_p=0.6),
    "min-p after top-p": replace(PLAIN, top_p=0.9, min_p=0.2),
    "temperature after the filters": replace(PLAIN, temperature=3.0, top_p=0.7, min_p=0.1),
    "everything": replace(
        PLAIN,
        temperature=0.8,
        top_k=50,
        top_p=0.9,
        min_p=0.05,
        repeat_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.1,
        logit_bias={9: 2.0, 5: -math.inf, 150: 1.5},
    ),
}


def some_logits(seed: int, size: int, spread: float) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


def llamacpp_applied(logits: np.ndarray, options: GenerationOptions, context: list[int]) -> Any:
    """llama.cpp's candidates after the whole chain, the last stage of which fills in the probabilities."""
    data = (api.llama_token_data * len(logits))(*((i, float(logit), 0.0) for i, logit in enumerate(logits)))
    candidates = api.llama_token_data_array(data, len(logits), -1, False)
    sampler = ChainSampler(options, len(logits), context)
    api.llama_sampler_apply(sampler.chain, ctypes.byref(candidates))
    sampler.close()
    return candidates


def llamacpp_probabilities(logits: np.ndarray, options: GenerationOptions, context: list[int] = RECENT) -> np.ndarray:
    candidates = llamacpp_applied(logits, options, context)
    probabilities = np.zeros(len(logits))
    for candidate in candidates.data[: candidates.size]:
        probabilities[candidate.id] = candidate.p
    return probabilities


def mlx_probabilities(logits: np.ndarray, options: GenerationOptions, context: list[int] = RECENT) -> np.ndarray:
    return np.array(mx.softmax(Sampler(options, context).filtered(mx.array(logits))))


def kept(probabilities: np.ndarray) -> np.ndarray:
    """Which tokens can be drawn. MLX rounds float32's smallest numbers to 0, so less than 1e-30 counts as 0."""
    return probabilities > 1e-30


def most_likely(logits: np.ndarray, options: GenerationOptions, context: list[int] = RECENT) -> tuple[int, int]:
    """The tokens that llama.cpp and MLX choose when they are greedy."""
    candidates = llamacpp_applied(logits, options, context)
    token = Sampler(options, context).draw(mx.array(logits)).item()
    return candidates.data[candidates.selected].id, int(token)  # type: ignore[arg-type]


# For more than 1,024 tokens llama.cpp's top-p has another algorithm.
@pytest.mark.parametrize("size", [200, 3000])
@pytest.mark.parametrize("spread", [0.5, 4.0])
@pytest.mark.parametrize("options", STAGES.values(), ids=STAGES.keys())
def test_both_engines_keep_the_same_tokens_with_the_same_probabilities(
    options: GenerationOptions, size: int, spread: float
) -> None:
    for seed in range(4):
        logits = some_logits(seed, size, spread)
        expected, found = llamacpp_probabilities(logits, options), mlx_probabilities(logits, options)
        assert np.array_equal(kept(expected), kept(found))
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in STAGES if name not in ("plain", "top-k of all")])
def test_every_stage_changes_the_distribution(name: str) -> None:
    logits = some_logits(0, 200, 1.0)
    assert not np.allclose(mlx_probabilities(logits, STAGES[name]), mlx_probabilities(logits, PLAIN))


@pytest.mark.parametrize("penalty", [1.0, 1.4])
@pytest.mark.parametrize("bias", [{}, {3: 5.0, 9: -math.inf}])
def test_greedy_takes_the_same_token_whatever_the_filters(penalty: float, bias: Mapping[int, float]) -> None:
    options = GenerationOptions(
        temperature=0, top_k=3, top_p=0.5, min_p=0.5, repeat_penalty=penalty, frequency_penalty=0.2, logit_bias=bias
    )
    for seed in range(20):
        expected, found = most_likely(some_logits(seed, 200, 3.0), options)
        assert found == expected


@given(
    logits=st.integers(0, 2**32 - 1).flatmap(
        lambda seed: st.builds(some_logits, st.just(seed), st.sampled_from([1, 2, 30, 300]), st.floats(0.01, 20))
    ),
    options=st.builds(
        GenerationOptions,
        temperature=st.sampled_from([1e-6, 0.3, 1.0, 2.0]),
        top_k=st.sampled_from([0, 1, 5, 200, 2**40]),
        top_p=st.sampled_from([1e-60, 1e-6, 0.3, 0.95, 1 - 1e-12, 1.0]),
        min_p=st.sampled_from([0.0, 1e-60, 0.02, 0.5, 1.0]),
        repeat_penalty=st.sampled_from([0.1, 0.9, 1.0, 1.2, 5.0]),
        presence_penalty=st.sampled_from([-3.0, 0.0, 0.5, 30.0]),
        frequency_penalty=st.sampled_from([-2.0, -0.1, 0.0, 0.5]),
    ),
    context=st.lists(st.integers(0, 10**6), min_size=1, max_size=100),
    biases=st.dictionaries(st.integers(0, 10**6), st.sampled_from([-math.inf, -1000.0, -1.0, 2.5, 1000.0]), max_size=8),
)
@settings(max_examples=300)
def test_all_options_together_mean_the_same(
    logits: np.ndarray, options: GenerationOptions, context: list[int], biases: dict[int, float]
) -> None:
    size = len(logits)
    context = [token % size for token in context]
    # Token 0 is never banned: the engines refuse a bias that bans all tokens.
    options = replace(options, logit_bias={token % size: bias for token, bias in biases.items() if token % size})
    expected, found = llamacpp_probabilities(logits, options, context), mlx_probabilities(logits, options, context)
    differing = kept(expected) != kept(found)
    # A token on the edge of a filter may be kept or dropped: the two add in a different order.
    edge = on_the_edge_of_top_p(logits, options, context)
    assert not differing.any() or (edge and differing.sum() == 1)
    if not differing.any():
        # A small temperature enlarges differences in the last digit.
        last_digit = 2e-6 * np.abs(logits).max() / options.temperature
        np.testing.assert_allclose(found, expected, rtol=2e-5 + last_digit, atol=1e-30)


@pytest.mark.parametrize("repeat_penalty", [1e-3, 1e6])
@pytest.mark.parametrize("largest", [-1000.0, 1000.0])
@pytest.mark.parametrize("size", [200, 3000])
def test_the_largest_allowed_values_still_give_probabilities(repeat_penalty: float, largest: float, size: int) -> None:
    options = replace(
        PLAIN,
        temperature=1e-20,
        repeat_penalty=repeat_penalty,
        presence_penalty=largest,
        frequency_penalty=largest,
        logit_bias={9: -math.inf, 5: largest, 100: -largest},
        top_k=150,  # sorted in buckets by llama.cpp
    )
    logits = some_logits(0, size, 20.0)
    expected, found = llamacpp_probabilities(logits, options), mlx_probabilities(logits, options)
    assert expected.argmax() == found.argmax()
    assert expected.max() == found.max() == 1


def test_a_token_on_the_edge_of_top_p_is_recognized() -> None:
    assert on_the_edge_of_top_p(np.zeros(10, dtype=np.float32), replace(PLAIN, top_p=0.3), [])
    assert not on_the_edge_of_top_p(np.zeros(10, dtype=np.float32), replace(PLAIN, top_p=0.35), [])


def on_the_edge_of_top_p(logits: np.ndarray, options: GenerationOptions, context: list[int]) -> bool:
    """Whether a running sum of probabilities, in float64, is so near to top-p that rounding decides."""
    before = replace(options, top_p=1.0, min_p=0.0, temperature=1.0)
    sums = np.cumsum(np.sort(mlx_probabilities(logits, before, context).astype(np.float64))[::-1])
    return bool((np.abs(sums - options.top_p) < 1e-5).any())


@pytest.mark.parametrize("top_k", [1, 2, 5, 299])
def test_of_equally_likely_tokens_top_k_keeps_exactly_k(top_k: int) -> None:
    logits = np.zeros(300, dtype=np.float32)
    logits[[7, 80]] = 2.0
    both = [applied(logits, replace(PLAIN, top_k=top_k)) for applied in (llamacpp_probabilities, mlx_probabilities)]
    for probabilities in both:
        # Which of them is not defined: llama.cpp's partial sort is not stable.
        assert kept(probabilities).sum() == top_k
        assert kept(probabilities)[[7, 80]].sum() == min(top_k, 2)
    np.testing.assert_allclose(np.sort(both[0]), np.sort(both[1]), rtol=1e-5)


def test_of_equally_likely_tokens_min_p_of_one_keeps_all_and_greedy_takes_the_first() -> None:
    logits = np.zeros(300, dtype=np.float32)
    logits[[7, 80, 200]] = 2.0
    for applied in (llamacpp_probabilities, mlx_probabilities):
        assert set(np.flatnonzero(applied(logits, replace(PLAIN, min_p=1.0)))) == {7, 80, 200}
    assert most_likely(logits, replace(PLAIN, temperature=0.0)) == (7, 7)


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-31, 1e-29, 1e-7, 1.0])
def test_the_only_token_that_is_not_banned_is_drawn_whatever_the_temperature(temperature: float) -> None:
    options = replace(
        PLAIN, temperature=temperature, logit_bias={token: -math.inf for token in range(200) if token != 9}
    )
    logits = some_logits(0, 200, 3.0)
    logits[9] = -50
    assert most_likely(logits, options) == (9, 9)
    options = replace(options, top_k=40, top_p=0.9, min_p=0.1, repeat_penalty=2.0)
    assert most_likely(logits, options) == (9, 9)


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-29, 1e-9])
def test_a_tiny_temperature_takes_the_most_likely_token(temperature: float) -> None:
    for seed in range(5):
        logits = some_logits(seed, 3000, 4.0)
        assert most_likely(logits, replace(PLAIN, temperature=temperature)) == (logits.argmax(),) * 2


def test_a_sampler_draws_tokens_as_often_as_they_are_likely() -> None:
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


def test_drawing_does_not_change_the_logits() -> None:
    logits = mx.array(some_logits(1, 200, 1.0))
    before = np.array(logits)
    Sampler(STAGES["everything"], RECENT).draw(logits).item()
    assert np.array_equal(np.array(logits), before)
