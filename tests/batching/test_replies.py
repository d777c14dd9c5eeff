"""Replies computed together: each is the one that its request gets alone."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from localq.batching import Batcher, ReplyRequest
from localq.engines.base import Feed
from localq.errors import EngineError, LocalqError, OptionError, PromptTooLongError
from localq.generation import Chunk
from localq.hardware import llama_cpp_has_gpu
from localq.model import Model
from localq.options import GenerationOptions
from tests.batching.asking import (
    FORMS,
    GREEDY,
    PROMPT,
    SAMPLED,
    Listener,
    alone,
    asked,
    some_prompt,
)
from tests.contracts.test_sequences import Listed


class Broken(Listed):
    """A constraint that fails after two tokens."""

    def __init__(self) -> None:
        super().__init__([40, 50])

    def mask(self) -> np.ndarray | None:
        if len(self.accepted) == 2:
            raise OptionError("this grammar is broken")
        return super().mask()


@pytest.mark.parametrize(
    ("form", "sequences"), [*((form, count) for form in FORMS[:2] for count in (1, 3, 16)), ("mlx-4bit", 3)]
)
def test_a_reproducible_reply_is_the_same_alone_and_in_company(
    opened: Callable[..., Model], form: str, sequences: int
) -> None:
    system = some_prompt(70)  # a whole chunk that all share, and a bit more
    prompts = [[*system, *some_prompt(length, length)] for length in (1, 9, 60, 58)]
    wanted = [(prompt, replace(SAMPLED, seed=seed)) for prompt in prompts for seed in range(4)]
    with closing(Batcher(opened(form, sequences=sequences, reproducible=True))) as batcher:
        ids = [listener.wait().ids for listener in [asked(batcher, *each) for each in wanted]]
        again = [listener.wait().ids for listener in [asked(batcher, *each) for each in reversed(wanted)]]
    single = opened(form, reproducible=True)
    assert ids == again[::-1] == [alone(single, *each) for each in wanted]


@pytest.mark.parametrize(("form", "shares"), [("gguf-q4_k_m", True), ("gguf-f32", False), ("mlx-4bit", False)])
def test_rows_of_a_reproducible_pass_are_bit_equal_to_those_alone(
    opened: Callable[..., Model], form: str, shares: bool
) -> None:
    engine = opened(form, sequences=16, reproducible=True).engine
    if form.startswith("gguf"):
        known = shares and platform.machine() in ("x86_64", "AMD64") and not llama_cpp_has_gpu()
        assert (engine._shared_rows > 1) == known  # type: ignore[attr-defined]
    most = 300 if form.startswith("gguf") else 70
    prompts = [some_prompt(min(length, most), length) for length in (1, 2, 63, 64, 65, 128, 200, 300, *range(30, 38))]

    def begin(sequence: int, prompt: list[int]) -> Any:
        for start in range(engine.begin(sequence, prompt), len(prompt), engine.chunk_tokens):
            engine.step([Feed(sequence, prompt[start : start + engine.chunk_tokens])])
        return engine.sampler(GenerationOptions(logprobs=0), prompt)

    def rows(feeds: list[Feed]) -> list[Any]:
        return [drawn.logits for drawn in engine.step(feeds) if drawn is not None]

    # As many passes as there are kinds of company, the whole one twice.
    company = [list(range(16)), list(range(15, -1, -1)), [3, 9, 4, 12, 0, 7, 1], [8, 2], [15, 5, 6, 10, 11]]
    alone = []
    for prompt in prompts:
        sampler = begin(0, prompt)
        alone.append([rows([Feed(0, [50 + turn], sampler)])[0] for turn in range(len(company))])
    samplers = [begin(sequence, prompt) for sequence, prompt in enumerate(prompts)]
    for turn, members in enumerate(company):
        together = rows([Feed(sequence, [50 + turn], samplers[sequence]) for sequence in members])
        for sequence, row in zip(members, together, strict=True):
            assert np.array_equal(row, alone[sequence][turn])
        rows([Feed(sequence, [50 + turn]) for sequence in range(16) if sequence not in members])


def test_replies_have_text_statistics_and_log_probabilities_as_alone(opened: Callable[..., Model]) -> None:
    model = opened(sequences=2, reproducible=True)
    options = replace(SAMPLED, seed=3, logprobs=2)
    expected = list(model.stream_ids(some_prompt(20), options))
    got: list[Chunk | LocalqError] = []
    other = Listener()
    with closing(Batcher(model)) as batcher:
        batcher.submit(ReplyRequest(tuple(some_prompt(20)), options), got.append)
        batcher.submit(ReplyRequest(tuple(some_prompt(30, 1)), replace(options, max_tokens=20)), other)
        other.wait()
    assert got[:-1] == expected[:-1]
    last = got[-1]
    assert isinstance(last, Chunk) and last.statistics is not None
    assert (last.finish_reason, last.statistics.prompt_tokens, last.statistics.generated_tokens) == ("length", 20, 12)
    assert last.statistics.generated_tokens_per_second is not None


def test_stop_strings_end_tokens_and_the_end_of_the_context_end_a_reply(opened: Callable[..., Model]) -> None:
    model = opened(sequences=4, context_length=64)
    ids = alone(model, PROMPT, GREEDY)
    text = model.tokenizer.decode(ids)
    with closing(Batcher(model)) as batcher:
        stopped = asked(batcher, PROMPT, replace(GREEDY, stop=(text[3:6],)))
        full = asked(batcher, some_prompt(60), GREEDY)
        assert stopped.wait().text == text[:3]
        assert stopped.last is not None and stopped.last.finish_reason == "stop"
        assert len(full.wait().ids) == 4
        model.end_tokens = frozenset({ids[2]})
        assert asked(batcher, PROMPT, GREEDY).wait().ids == ids[:3]


@pytest.mark.parametrize("form", ["gguf-f32", "mlx-4bit"])
def test_replies_obey_their_constraints_and_take_forced_tokens(opened: Callable[..., Model], form: str) -> None:
    words = [40, 50, 60, 70]
    with closing(Batcher(opened(form, sequences=3))) as batcher:
        free = asked(batcher, PROMPT, GREEDY)
        drawn = asked(batcher, PROMPT, GREEDY, constraint=Listed(words))
        forced = asked(batcher, PROMPT, GREEDY, constraint=Listed(words, forces_from=1))
        assert drawn.wait().ids[:4] == forced.wait().ids[:4] == words
        assert drawn.ids == forced.ids != free.wait().ids
        broken = asked(batcher, PROMPT, GREEDY, constraint=Broken())
        assert "grammar" in str(broken.wait().error)


def test_what_is_wrong_with_one_request_is_told_to_nobody_else(opened: Callable[..., Model]) -> None:
    model = opened(sequences=2)
    expected = alone(model, PROMPT, GREEDY)
    with closing(Batcher(model)) as batcher:
        good = asked(batcher, PROMPT, GREEDY)
        assert isinstance(asked(batcher, [5] * 512, GREEDY).wait().error, PromptTooLongError)
        assert isinstance(asked(batcher, PROMPT, replace(GREEDY, logit_bias={10**6: 1})).wait().error, OptionError)
        assert isinstance(asked(batcher, [], GREEDY).wait().error, EngineError)
        batcher.submit(ReplyRequest(tuple(PROMPT), GREEDY), lambda event: 1 / 0)  # type: ignore[arg-type, return-value]
        assert good.wait().ids == expected
