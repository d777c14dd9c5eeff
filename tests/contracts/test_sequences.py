"""What every engine guarantees when it computes several sequences: the same tests for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from localq.engines.base import Engine, Feed
from localq.errors import EngineError, OptionError, PromptTooLongError
from localq.options import GenerationOptions
from tests.contracts.replies import GREEDY, PROMPT, SAMPLED, generated

PROMPTS = [PROMPT, [9, 8, 7], [*PROMPT[:5], 100, 101], [300]]
"""The third begins as the first; the last is a single token."""


class Listed:
    """A constraint that allows the tokens of a list, each at its place; after it, all. It forces where told."""

    def __init__(self, tokens: Sequence[int], forces_from: int = 10**6, packed: bool = False) -> None:
        self.accepted: list[int] = []
        self._tokens, self._forces_from, self._packed = list(tokens), forces_from, packed

    def mask(self) -> np.ndarray | None:
        place = len(self.accepted)
        if place >= len(self._tokens):
            return None
        allowed = np.zeros(320, dtype=np.bool_)
        allowed[self._tokens[place]] = True
        return np.packbits(allowed, bitorder="little").view(np.int32) if self._packed else allowed[:319]

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)

    def forced(self) -> Sequence[int]:
        return self._tokens[len(self.accepted) :] if len(self.accepted) >= self._forces_from else []


def begun(engine: Engine, sequence: int, prompt: list[int], options: GenerationOptions) -> tuple[int, object]:
    """Compute a prompt in a step of its own; the first id and the sampler."""
    reused = engine.begin(sequence, prompt)
    sampler = engine.sampler(options, prompt)
    (drawn,) = engine.step([Feed(sequence, prompt[reused:], sampler)])
    assert drawn is not None
    return drawn.token_id, sampler


def together(engine: Engine, prompts: list[list[int]], options: GenerationOptions) -> list[list[int]]:
    """The replies to prompts, one sequence each, a token for all of them in every step."""
    started = [begun(engine, sequence, prompt, options) for sequence, prompt in enumerate(prompts)]
    replies = [[token] for token, _ in started]
    for _ in range(options.max_tokens - 1):
        feeds = [Feed(sequence, reply[-1:], started[sequence][1]) for sequence, reply in enumerate(replies)]
        for reply, drawn in zip(replies, engine.step(feeds), strict=True):
            assert drawn is not None
            reply.append(drawn.token_id)
    return replies


@pytest.mark.parametrize("options", [GREEDY, SAMPLED, replace(SAMPLED, repeat_penalty=1.3, logit_bias={7: 2.0})])
def test_sequences_that_are_computed_together_get_the_ids_that_each_gets_alone(
    four_sequences: Engine, options: GenerationOptions
) -> None:
    # Float32 and logits far apart: also in fast mode rounding changes none of them.
    alone = [generated(four_sequences, options, prompt) for prompt in PROMPTS]
    assert together(four_sequences, PROMPTS, options) == alone


def test_prompts_of_different_lengths_may_be_computed_in_one_step(four_sequences: Engine) -> None:
    alone = [generated(four_sequences, replace(GREEDY, max_tokens=1), prompt) for prompt in PROMPTS]
    feeds = []
    for sequence in (2, 0, 3, 1):
        reused = four_sequences.begin(sequence, PROMPTS[sequence])
        sampler = four_sequences.sampler(GREEDY, PROMPTS[sequence])
        feeds.append(Feed(sequence, PROMPTS[sequence][reused:], sampler))
    drawn = [one and [one.token_id] for one in four_sequences.step(feeds)]
    assert drawn == [alone[feed.sequence] for feed in feeds]


def test_a_sequence_pauses_while_others_go_on_and_leaves_without_a_trace(four_sequences: Engine) -> None:
    alone = [generated(four_sequences, GREEDY, prompt) for prompt in PROMPTS]
    started = [begun(four_sequences, sequence, prompt, GREEDY) for sequence, prompt in enumerate(PROMPTS)]
    replies = [[token] for token, _ in started]
    for taking_part in ([0, 1, 2, 3], [0, 2], [3], [1, 3], [3, 2, 0], [0, 3], [1]):
        feeds = [Feed(sequence, replies[sequence][-1:], started[sequence][1]) for sequence in taking_part]
        for sequence, drawn in zip(taking_part, four_sequences.step(feeds), strict=True):
            assert drawn is not None
            replies[sequence].append(drawn.token_id)
    assert [len(reply) for reply in replies] == [5, 4, 4, 6]
    assert replies == [expected[: len(reply)] for reply, expected in zip(replies, alone, strict=True)]


def test_a_sequence_can_be_copied_and_cut_and_continued(four_sequences: Engine) -> None:
    longer = [*PROMPT, 1, 2, 3]
    expected = generated(four_sequences, GREEDY, longer)
    begun(four_sequences, 1, PROMPT, GREEDY)
    four_sequences.restore(four_sequences.state(1), 3)
    assert four_sequences.reusable(3, longer) == four_sequences.reusable(1, longer)
    first, sampler = begun(four_sequences, 3, longer, GREEDY)
    (second,) = four_sequences.step([Feed(3, [first], sampler)])
    assert second is not None and [first, second.token_id] == expected[:2]


def test_what_a_sequence_holds_is_used_again_up_to_the_first_difference(four_sequences: Engine) -> None:
    chunk = four_sequences.chunk_tokens
    prompt = [(7 * position) % 200 for position in range(100)]
    engine = four_sequences
    engine.begin(2, prompt)
    for start in range(0, len(prompt), chunk):
        engine.step([Feed(2, prompt[start : start + chunk])])
    assert engine.reusable(2, [*prompt[:90], 1, 2]) in {90, 90 // chunk * chunk}  # whole chunks where repeatable
    assert engine.reusable(1, prompt) == 0
    assert engine.begin(2, prompt[:70]) in {69, 69 // chunk * chunk}


def test_several_tokens_are_fed_at_once_and_only_the_last_one_draws(four_sequences: Engine) -> None:
    reply = generated(four_sequences, GREEDY)
    token, sampler = begun(four_sequences, 1, PROMPT, GREEDY)
    assert four_sequences.step([Feed(1, reply[:2])]) == [None]
    (drawn,) = four_sequences.step([Feed(1, reply[2:5], sampler)])
    assert drawn is not None and (token, drawn.token_id) == (reply[0], reply[5])


def test_with_logprobs_a_step_gives_the_row_before_the_mask(four_sequences: Engine) -> None:
    options = replace(GREEDY, logprobs=0)
    (expected,) = generated(four_sequences, replace(GREEDY, max_tokens=1))
    mask = np.zeros(four_sequences.vocabulary_size, dtype=np.bool_)
    mask[77] = True
    reused = four_sequences.begin(2, PROMPT)
    sampler = four_sequences.sampler(options, PROMPT)
    (drawn,) = four_sequences.step([Feed(2, PROMPT[reused:], sampler, mask)])
    assert drawn is not None and drawn.token_id == 77
    assert drawn.logits is not None and drawn.logits.argmax() == expected


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", [GREEDY, SAMPLED, replace(GREEDY, logprobs=2)])
def test_a_constraint_chooses_the_tokens_of_a_single_reply(
    four_sequences: Engine, options: GenerationOptions, packed: bool
) -> None:
    for forces_from in (10**6, 2, 1):
        constraint = Listed([11, 5, 201, 201, 90], forces_from, packed)
        four_sequences.prefill(PROMPT)
        reply = list(four_sequences.generate(options, constraint))
        assert len(reply) == options.max_tokens
        assert reply[:5] == [11, 5, 201, 201, 90]
        assert constraint.accepted == reply


def test_forced_tokens_change_nothing_but_the_number_of_passes(four_sequences: Engine) -> None:
    replies = []
    for forces_from in (10**6, 1):
        four_sequences.prefill(PROMPT)
        options = replace(GREEDY, repeat_penalty=1.5)
        replies.append(list(four_sequences.generate(options, Listed([11, 5, 201, 90], forces_from))))
    assert replies[0] == replies[1]


def test_a_constraint_that_allows_nothing_is_an_error(four_sequences: Engine) -> None:
    class Nothing(Listed):
        def mask(self) -> np.ndarray:
            return np.zeros(320, dtype=np.bool_)

    four_sequences.prefill(PROMPT)
    with pytest.raises(EngineError, match="no token"):
        next(four_sequences.generate(GREEDY, Nothing([])))
    assert len(generated(four_sequences, GREEDY)) == GREEDY.max_tokens


def test_a_prompt_or_a_bias_that_does_not_fit_is_refused_before_anything_is_computed(four_sequences: Engine) -> None:
    with pytest.raises(PromptTooLongError):
        four_sequences.begin(1, [1] * 128)
    with pytest.raises(EngineError, match="token id 320"):
        four_sequences.begin(1, [320])
    with pytest.raises(OptionError, match="logit_bias"):
        four_sequences.sampler(GenerationOptions(logit_bias={320: 1.0}), PROMPT)


def test_a_closed_engine_takes_no_step(four_sequences: Engine) -> None:
    four_sequences.close()
    with pytest.raises(EngineError, match="closed"):
        four_sequences.begin(1, PROMPT)
    with pytest.raises(EngineError, match="closed"):
        four_sequences.step([Feed(1, PROMPT)])
