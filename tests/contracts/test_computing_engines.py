"""What only the engines that compute guarantee, and that their results agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest

from localq.engines.base import PREFILL_CHUNK_TOKENS, Engine
from localq.options import GenerationOptions
from tests.contracts.replies import GREEDY, PROMPT, SAMPLED, all_logits, generated, kl_divergence, long_prompt

EngineMaker = Callable[[int], Engine]


def test_all_logits_are_those_of_every_prefix(computing_engine: Engine) -> None:
    rows = all_logits(computing_engine, PROMPT)
    for length in (1, 4, len(PROMPT)):
        computing_engine.prefill(PROMPT[:length])
        np.testing.assert_allclose(rows[length - 1], computing_engine.logits(), atol=2e-4)


def test_all_logits_do_not_depend_on_chunks(tiny_llama: Any) -> None:
    tokens = long_prompt(PREFILL_CHUNK_TOKENS + 40)
    for name in ("llamacpp", "mlx"):
        engine = tiny_llama.open(name, 1024)
        last = all_logits(engine, tokens)[-1]
        engine.prefill(tokens)
        np.testing.assert_allclose(last, engine.logits(), atol=2e-4)
        engine.close()


def test_after_the_last_chunk_the_newest_logits_can_be_read(computing_engine: Engine) -> None:
    rows = all_logits(computing_engine, PROMPT)
    assert np.array_equal(computing_engine.logits(), rows[-1])


def test_a_seed_repeats_a_reply_and_another_seed_gives_another(computing_engine: Engine) -> None:
    first = generated(computing_engine, SAMPLED)
    assert generated(computing_engine, SAMPLED) == first
    assert generated(computing_engine, replace(SAMPLED, seed=8)) != first


def test_without_a_seed_every_reply_is_different(computing_engine: Engine) -> None:
    replies = [tuple(generated(computing_engine, replace(SAMPLED, seed=None))) for _ in range(3)]
    assert len(set(replies)) == 3


@pytest.mark.parametrize(
    "options",
    [GREEDY, SAMPLED, replace(SAMPLED, repeat_penalty=1.3, logit_bias={7: 2.0}), replace(SAMPLED, logprobs=0)],
)
def test_threads_may_take_turns_with_one_reply(computing_engine: Engine, options: GenerationOptions) -> None:
    expected = generated(computing_engine, options)
    expected_logits = computing_engine.logits()
    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]
        threads[0].submit(computing_engine.prefill, PROMPT).result()
        reply = computing_engine.generate(options)
        ids = [threads[turn % 3].submit(next, reply).result() for turn in range(1, 1 + options.max_tokens)]
        assert ids == expected
        assert threads[0].submit(next, reply, None).result() is None
        logits = threads[1].submit(computing_engine.logits).result()
        np.testing.assert_allclose(logits, expected_logits, atol=2e-4)


def test_logits_may_be_read_by_another_thread_than_the_one_that_computed_them(computing_engine: Engine) -> None:
    with ThreadPoolExecutor(1) as thread:
        thread.submit(computing_engine.prefill, PROMPT).result()
        after_prefill = computing_engine.logits()
        thread.submit(all_logits, computing_engine, PROMPT).result()
        np.testing.assert_allclose(computing_engine.logits(), after_prefill, atol=2e-4)


def test_a_bias_bans_and_forces_tokens(computing_engine: Engine) -> None:
    plain = generated(computing_engine, GREEDY)
    banned = generated(computing_engine, replace(GREEDY, logit_bias={token: -math.inf for token in plain}))
    assert not set(banned) & set(plain)
    assert generated(computing_engine, replace(SAMPLED, logit_bias={77: 1000.0})) == [77] * SAMPLED.max_tokens


def test_a_bias_and_penalties_do_not_change_the_logits(computing_engine: Engine) -> None:
    computing_engine.prefill(PROMPT)
    before = computing_engine.logits()
    biased = replace(SAMPLED, logit_bias={77: 1000.0}, repeat_penalty=2.0, presence_penalty=3.0, logprobs=0)
    assert next(computing_engine.generate(biased)) == 77
    assert np.array_equal(computing_engine.logits(), before)


def test_top_k_of_one_is_greedy(computing_engine: Engine) -> None:
    expected = generated(computing_engine, replace(GREEDY, max_tokens=24))
    assert generated(computing_engine, replace(SAMPLED, top_k=1)) == expected


def test_only_tokens_that_the_filters_leave_are_drawn(computing_engine: Engine) -> None:
    computing_engine.prefill(PROMPT)
    most_likely = set(np.argsort(computing_engine.logits())[-4:].tolist())
    drawn = {
        generated(computing_engine, GenerationOptions(max_tokens=1, temperature=5.0, top_k=4, seed=seed))[0]
        for seed in range(60)
    }
    assert drawn == most_likely


@pytest.mark.parametrize("name", ["llamacpp", "mlx"])
def test_closing_frees_the_memory_that_opening_took(tiny_llama: Any, name: str) -> None:
    def use_one() -> int:
        engine = tiny_llama.open(name, 512)
        generated(engine, GREEDY)
        engine.close()
        return psutil.Process().memory_info().rss

    early = max(use_one() for _ in range(20))
    # One that was not freed would take more than 300 kB: its weights.
    assert max(use_one() for _ in range(80)) - early < 80 * 100_000


def test_both_engines_generate_the_same_ids_from_the_same_weights(both_engines: tuple[Engine, Engine]) -> None:
    long = replace(GREEDY, max_tokens=200)
    first, second = (generated(engine, long) for engine in both_engines)
    assert first == second
    assert len(set(first)) > 20


@pytest.mark.parametrize(
    "penalty",
    [
        {"repeat_penalty": 1.3},
        {"repeat_penalty": 0.8},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.7},
        {"logit_bias": {token: token % 5 - 2.0 for token in range(320)}},
    ],
)
def test_penalties_and_bias_change_the_replies_of_both_engines_in_the_same_way(
    both_engines: tuple[Engine, Engine], penalty: dict[str, Any]
) -> None:
    options = GenerationOptions(max_tokens=150, **penalty)
    prompt = long_prompt(90)
    first, second = (generated(engine, options, prompt) for engine in both_engines)
    assert first == second
    assert first != generated(both_engines[0], GenerationOptions(max_tokens=150), prompt)


@pytest.mark.parametrize("penalty", [{"repeat_penalty": 1e6}, {"presence_penalty": 1e3}, {"frequency_penalty": 1e3}])
def test_the_penalties_apply_to_the_last_64_tokens(computing_engine: Engine, penalty: dict[str, float]) -> None:
    prompt = long_prompt(90)
    computing_engine.prefill(prompt)
    logits = computing_engine.logits()
    recent = prompt[-64:]
    # So strong that every penalized token falls below every other one.
    computing_engine.prefill(prompt)
    token = next(computing_engine.generate(GenerationOptions(max_tokens=1, **penalty)))  # type: ignore[arg-type]
    outside = [token for token in range(computing_engine.vocabulary_size) if token not in recent]
    assert token == max(outside, key=lambda token: logits[token])
    assert set(prompt[:-64]) - set(recent)


def test_both_engines_give_the_same_probabilities(both_engines: tuple[Engine, Engine]) -> None:
    first, second = (all_logits(engine, long_prompt(300)) for engine in both_engines)
    assert kl_divergence(first, second).max() < 1e-9


@pytest.mark.parametrize("context_length", [256, 512])
def test_both_engines_choose_the_same_longrope_factors(tiny_longrope: Any, context_length: int) -> None:
    rows = []
    for name in ("llamacpp", "mlx"):
        engine = tiny_longrope.open(name, context_length)
        rows.append(all_logits(engine, long_prompt(200)))
        engine.close()
    assert kl_divergence(*rows).max() < 1e-9


@pytest.mark.parametrize("name", ["llamacpp", "mlx"])
def test_a_model_may_be_opened_by_another_thread_than_the_one_that_uses_it(tiny_longrope: Any, name: str) -> None:
    with ThreadPoolExecutor(1) as thread:
        engine = thread.submit(tiny_longrope.open, name, 256).result()
    rows = all_logits(engine, long_prompt(20))
    engine.close()
    expected = tiny_longrope.open(name, 256)
    np.testing.assert_allclose(rows, all_logits(expected, long_prompt(20)), atol=2e-4)
    expected.close()


@pytest.mark.parametrize("name", ["llamacpp", "mlx"])
def test_longrope_factors_depend_on_the_context_length(tiny_longrope: Any, name: str) -> None:
    rows = []
    for context_length in (256, 512):
        engine = tiny_longrope.open(name, context_length)
        rows.append(all_logits(engine, long_prompt(200)))
        engine.close()
    assert kl_divergence(*rows).mean() > 1e-3
