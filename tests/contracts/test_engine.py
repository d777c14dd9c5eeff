"""What every engine guarantees: the same tests for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from localq.engines.base import PREFILL_CHUNK_TOKENS, Engine
from localq.errors import EngineError, OptionError, PromptTooLongError
from localq.options import GenerationOptions
from tests.contracts.replies import GREEDY, PROMPT, all_logits, generated, long_prompt

EngineMaker = Callable[[int], Engine]


def test_the_first_prefill_takes_nothing_from_the_cache(make_engine: EngineMaker) -> None:
    assert make_engine(64).prefill(PROMPT) == 0


def test_a_longer_prompt_takes_the_earlier_one_from_the_cache(make_engine: EngineMaker) -> None:
    engine = make_engine(64)
    engine.prefill(PROMPT)
    assert engine.prefill([*PROMPT, 3, 4]) == len(PROMPT)


def test_the_same_prompt_again_computes_only_its_last_token(make_engine: EngineMaker) -> None:
    engine = make_engine(64)
    engine.prefill(PROMPT)
    assert engine.prefill(PROMPT) == len(PROMPT) - 1


def test_the_cache_is_used_up_to_the_first_difference(make_engine: EngineMaker) -> None:
    engine = make_engine(64)
    engine.prefill(PROMPT)
    assert engine.prefill([*PROMPT[:4], 1, *PROMPT[5:]]) == 4


def test_a_reply_in_the_next_prompt_comes_from_the_cache(make_engine: EngineMaker) -> None:
    engine = make_engine(64)
    reply = generated(engine, GREEDY)
    # The newest token need not have been computed: no token after it was requested.
    assert engine.prefill([*PROMPT, *reply, 9]) >= len(PROMPT) + len(reply) - 1


def test_a_prefill_from_the_cache_gives_the_same_ids_as_one_from_scratch(make_engine: EngineMaker) -> None:
    prompt = [*PROMPT, 77, 78]
    expected = generated(make_engine(64), GREEDY, prompt)
    engine = make_engine(64)
    generated(engine, GREEDY, [*PROMPT, 99, 98, 97])
    assert engine.prefill(prompt) == len(PROMPT)
    assert list(engine.generate(GREEDY)) == expected


def test_progress_counts_up_to_the_whole_prompt(make_engine: EngineMaker) -> None:
    prompt = long_prompt(PREFILL_CHUNK_TOKENS + 88)
    seen: list[tuple[int, int]] = []
    make_engine(1024).prefill(prompt, lambda done, total: seen.append((done, total)))
    done = [0, *(tokens for tokens, _ in seen)]
    # Never more than that between two chances to cancel; an engine may use smaller chunks.
    assert all(0 < step <= PREFILL_CHUNK_TOKENS for step in np.diff(done))
    assert len(seen) > 1
    assert seen[-1] == (len(prompt), len(prompt))
    assert {total for _, total in seen} == {len(prompt)}


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_engine_is_usable_after_a_cancelled_prefill(make_engine: EngineMaker, error: type[BaseException]) -> None:
    prompt = long_prompt(2 * PREFILL_CHUNK_TOKENS - 100)
    expected = generated(make_engine(1024), GREEDY, prompt)
    engine = make_engine(1024)
    computed: list[int] = []

    def cancel(done: int, _total: int) -> None:
        computed.append(done)
        raise error("cancelled by the test")

    with pytest.raises(error, match="cancelled by the test"):
        engine.prefill(prompt, cancel)
    assert computed[0] < len(prompt)
    assert [engine.prefill(prompt)] == computed
    assert list(engine.generate(GREEDY)) == expected


def test_a_prompt_that_leaves_no_room_is_refused_with_both_numbers(make_engine: EngineMaker) -> None:
    engine = make_engine(len(PROMPT))
    with pytest.raises(PromptTooLongError) as caught:
        engine.prefill(PROMPT)
    assert (caught.value.prompt_tokens, caught.value.context_length) == (len(PROMPT), len(PROMPT))


def test_an_empty_prompt_is_refused(make_engine: EngineMaker) -> None:
    with pytest.raises(EngineError, match="no tokens"):
        make_engine(64).prefill([])


@pytest.mark.parametrize("token", [-1, 320])
def test_an_id_outside_the_vocabulary_is_refused_by_its_number(make_engine: EngineMaker, token: int) -> None:
    with pytest.raises(EngineError, match=f"token id {token} .* vocabulary of 320"):
        make_engine(64).prefill([1, token])


@pytest.mark.parametrize("count", [1, 2, 12])
def test_exactly_max_tokens_are_generated(make_engine: EngineMaker, count: int) -> None:
    assert len(generated(make_engine(64), replace(GREEDY, max_tokens=count))) == count


@pytest.mark.parametrize("room", [1, 5])
def test_a_reply_ends_when_the_context_is_full(make_engine: EngineMaker, room: int) -> None:
    assert len(generated(make_engine(len(PROMPT) + room), GREEDY)) == room


def test_an_engine_is_usable_after_a_reply_was_closed_early(make_engine: EngineMaker) -> None:
    engine = make_engine(64)
    engine.prefill(PROMPT)
    reply = engine.generate(GREEDY)
    first = [next(reply), next(reply)]
    reply.close()
    assert generated(engine, GREEDY)[:2] == first


def test_nothing_is_generated_without_a_prefill(make_engine: EngineMaker) -> None:
    engine = make_engine(64)
    with pytest.raises(EngineError, match="no prompt"):
        next(engine.generate(GREEDY))
    with pytest.raises(EngineError, match="no prompt"):
        engine.logits()


@pytest.mark.parametrize("bias", [{320: 1.0}, {3: 1.0, 10**12: 1.0}, {token: -math.inf for token in range(320)}])
def test_a_bias_that_does_not_fit_the_vocabulary_is_refused(make_engine: EngineMaker, bias: dict[int, float]) -> None:
    engine = make_engine(64)
    engine.prefill(PROMPT)
    with pytest.raises(OptionError, match="logit_bias .*320"):
        next(engine.generate(GenerationOptions(logit_bias=bias)))


def test_with_logprobs_the_logits_of_each_id_can_be_read_when_it_comes(
    make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("localq.engines.mlx._runs_ahead", lambda: True)  # as on Metal
    engine = make_engine(64)
    engine.prefill(PROMPT)
    for token in engine.generate(replace(GREEDY, logprobs=0)):
        assert token == engine.logits().argmax()


def test_logits_come_as_a_row_of_float32_that_the_caller_may_keep(make_engine: EngineMaker) -> None:
    engine = make_engine(64)
    engine.prefill(PROMPT)
    logits = engine.logits()
    before = logits.copy()
    assert logits.shape == (engine.vocabulary_size,)
    assert logits.dtype == np.float32
    engine.prefill([1, 2, 3])
    list(engine.generate(GREEDY))
    assert np.array_equal(logits, before)


def test_greedy_takes_the_token_with_the_largest_logit(make_engine: EngineMaker) -> None:
    engine = make_engine(64)
    engine.prefill(PROMPT)
    most_likely = int(np.argmax(engine.logits()))
    assert next(engine.generate(GREEDY)) == most_likely


@pytest.mark.parametrize("first", [0, 1, 6, len(PROMPT) - 1, len(PROMPT)])
def test_logits_come_in_small_chunks_from_the_first_requested_one(
    make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    engine = make_engine(64)
    expected = all_logits(engine, PROMPT)
    monkeypatch.setattr("localq.engines.base.CHUNK_LOGITS_BYTES", 3 * 4 * engine.vocabulary_size + 1)
    chunks = list(engine.logits_in_chunks(PROMPT, first))
    assert all(chunk.dtype == np.float32 and 1 <= len(chunk) <= 3 for chunk in chunks)
    rows = np.concatenate([np.empty((0, engine.vocabulary_size)), *chunks])
    np.testing.assert_allclose(rows, expected[first:], atol=2e-4)
    assert engine.prefill([*PROMPT, 1]) == len(PROMPT)  # the cache holds them


def test_a_row_too_large_for_a_chunk_comes_alone(make_engine: EngineMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localq.engines.base.CHUNK_LOGITS_BYTES", 1)
    assert [len(chunk) for chunk in make_engine(64).logits_in_chunks(PROMPT, 7)] == [1] * (len(PROMPT) - 7)


def test_an_engine_is_usable_after_its_chunks_were_left_early(make_engine: EngineMaker) -> None:
    expected = generated(make_engine(1024), GREEDY)
    engine = make_engine(1024)
    next(engine.logits_in_chunks(long_prompt(PREFILL_CHUNK_TOKENS + 88)))
    assert generated(engine, GREEDY) == expected


def test_tokens_whose_logits_are_computed_may_fill_the_context_but_not_exceed_it(make_engine: EngineMaker) -> None:
    engine = make_engine(len(PROMPT))
    assert all_logits(engine, PROMPT).shape == (len(PROMPT), engine.vocabulary_size)
    with pytest.raises(PromptTooLongError):
        all_logits(engine, [*PROMPT, 1])
    with pytest.raises(EngineError, match="token id 320"):
        all_logits(engine, [1, 320])


def test_closing_twice_is_harmless_and_a_closed_engine_raises(make_engine: EngineMaker) -> None:
    engine = make_engine(64)
    engine.prefill(PROMPT)
    engine.close()
    engine.close()
    uses: list[Callable[[], Any]] = [
        lambda: engine.prefill(PROMPT),
        lambda: next(engine.generate(GREEDY)),
        engine.logits,
        lambda: all_logits(engine, PROMPT),
    ]
    for use in uses:
        with pytest.raises(EngineError, match="closed"):
            use()


def test_an_engine_writes_nothing_to_the_terminal(make_engine: EngineMaker, capfd: pytest.CaptureFixture[str]) -> None:
    engine = make_engine(64)
    generated(engine, GREEDY)
    all_logits(engine, PROMPT)
    engine.close()
    assert capfd.readouterr() == ("", "")
