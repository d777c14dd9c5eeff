"""Replies from a scripted engine, with a tokenizer whose tokens are the 256 bytes."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

import localq.generation
from localq.engines.base import Constraint, PrefillProgress
from localq.errors import EngineError, OptionError, PromptTooLongError
from localq.generation import Completion, GenerationStatistics, TextRules, complete, stream
from localq.options import GenerationOptions
from tests.scripted_engine import ScriptedEngine

END = 0
PROMPT = list(b"question")


@dataclass
class ByteTokenizer:
    """Token n is the byte n; 0 is special."""

    vocabulary_size: int = 256
    strips_leading_space: bool = False
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    added_tokens: Mapping[str, int] = field(default_factory=dict)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id else b""

    def token_id(self, token: str) -> int | None:
        return token.encode()[0] if len(token) == 1 else None

    def decode(self, token_ids: Iterable[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


RULES = TextRules(ByteTokenizer(), frozenset({END}))


def reply_to(text: str, options: GenerationOptions | None = None, rules: TextRules = RULES) -> Completion:
    engine = ScriptedEngine([text.encode()])
    return complete(engine, rules, PROMPT, options or GenerationOptions())


def test_a_reply_has_its_text_its_ids_and_its_prompt() -> None:
    reply = reply_to("Grüße\0")
    assert reply.text == "Grüße"
    assert reply.prompt_token_ids == tuple(PROMPT)
    assert reply.generated_token_ids == tuple("Grüße\0".encode())


def test_an_end_token_stops_the_reply_and_is_generated_but_not_text() -> None:
    reply = reply_to("yes\0 and more")
    assert (reply.text, reply.finish_reason) == ("yes", "stop")
    assert reply.generated_token_ids[-1] == END
    assert reply.statistics.generated_tokens == 4


def test_an_end_token_that_has_bytes_is_not_text_either() -> None:
    rules = TextRules(ByteTokenizer(), frozenset(b"!"))
    assert reply_to("yes! and more", rules=rules).text == "yes"


def test_a_stop_string_stops_the_reply_and_is_not_part_of_the_text() -> None:
    reply = reply_to("one, two, three", GenerationOptions(stop=("two",)))
    assert (reply.text, reply.finish_reason) == ("one, ", "stop")
    assert bytes(reply.generated_token_ids) == b"one, two"


def test_a_stop_string_that_is_only_begun_is_text() -> None:
    assert reply_to("one, tw\0", GenerationOptions(stop=("two",))).text == "one, tw"


def test_a_stop_string_that_ends_with_the_last_token_allowed_is_a_stop() -> None:
    reply = reply_to("one, two", GenerationOptions(stop=("two",), max_tokens=8))
    assert reply.finish_reason == "stop"


def test_max_tokens_ends_a_reply_by_length() -> None:
    reply = reply_to("endless", GenerationOptions(max_tokens=3))
    assert (reply.text, reply.finish_reason) == ("end", "length")


def test_a_full_context_ends_a_reply_by_length() -> None:
    engine = ScriptedEngine([b"endless"], context_length=len(PROMPT) + 4)
    reply = complete(engine, RULES, PROMPT, GenerationOptions())
    assert (reply.text, reply.finish_reason) == ("endl", "length")


def test_a_character_cut_by_max_tokens_is_marked_as_such() -> None:
    assert reply_to("ü", GenerationOptions(max_tokens=1)).text == "\ufffd"


@pytest.mark.parametrize(("strip", "text"), [(True, "hello you"), (False, " hello you")])
def test_one_leading_space_is_dropped_where_the_rules_say_so(strip: bool, text: str) -> None:
    rules = TextRules(ByteTokenizer(), frozenset({END}), strip_leading_space=strip)
    assert reply_to(" hello you\0", rules=rules).text == text


def test_chunks_have_one_token_each_and_the_last_one_has_the_result() -> None:
    engine = ScriptedEngine([b"abc\0"])
    *pieces, last = stream(engine, RULES, PROMPT, GenerationOptions())
    assert [piece.token_ids for piece in pieces] == [(97,), (98,), (99,), (END,)]
    assert [piece.text for piece in pieces] == ["a", "b", "c", ""]
    assert all(piece.finish_reason is None and piece.statistics is None for piece in pieces)
    assert (last.text, last.token_ids, last.finish_reason) == ("", (), "stop")
    assert last.statistics is not None and last.statistics.generated_tokens == 4


def test_text_arrives_with_the_token_that_makes_it_certain() -> None:
    engine = ScriptedEngine(["aüb".encode()])
    texts = [piece.text for piece in stream(engine, RULES, PROMPT, GenerationOptions())]
    assert texts == ["a", "", "ü", "b", ""]


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    engine = ScriptedEngine([b"x"], context_length=len(PROMPT))
    with pytest.raises(PromptTooLongError) as caught:
        complete(engine, RULES, PROMPT, GenerationOptions())
    assert (caught.value.prompt_tokens, caught.value.context_length) == (8, 8)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(EngineError, match="no tokens"):
        complete(ScriptedEngine([b"x"]), RULES, [], GenerationOptions())


def test_nothing_is_computed_before_the_first_chunk_is_requested() -> None:
    engine = ScriptedEngine([b"x"])
    chunks = stream(engine, RULES, PROMPT, GenerationOptions())
    assert engine.prompts == []
    next(chunks)
    assert engine.prompts == [PROMPT]


def test_progress_of_the_prompt_is_reported_and_may_cancel() -> None:
    engine = ScriptedEngine([b"x"])

    def cancel(done: int, total: int) -> None:
        assert (done, total) == (len(PROMPT), len(PROMPT))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(stream(engine, RULES, PROMPT, GenerationOptions(), cancel))
    assert complete(engine, RULES, PROMPT, GenerationOptions()).text == "x"


class UnevenEngine(ScriptedEngine):
    """Its next token has the logit 3, token 10 has 2, token 20 has 1 and all others 0."""

    def logits(self) -> NDArray[np.float32]:
        row = 3 * super().logits()
        row[[10, 20]] = 2, 1
        return row


def test_logprobs_are_those_of_the_softmax_of_the_logits() -> None:
    engine = UnevenEngine([b"ab\0"])
    options = GenerationOptions(logprobs=3, temperature=0.2, top_k=1, logit_bias={5: 9.0})
    reply = complete(engine, RULES, PROMPT, options)
    total = math.log(math.exp(3) + math.exp(2) + math.exp(1) + 253)
    assert reply.logprobs is not None
    assert [logprobs.token_id for logprobs in reply.logprobs] == list(b"ab\0") == list(reply.generated_token_ids)
    for logprobs in reply.logprobs:
        assert logprobs.logprob == pytest.approx(3 - total)
        assert [token for token, _ in logprobs.top] == [logprobs.token_id, 10, 20]
        assert [value for _, value in logprobs.top] == pytest.approx([3 - total, 2 - total, 1 - total])


@pytest.mark.parametrize(("count", "told"), [(0, 0), (1, 1), (256, 256), (10**9, 256)])
def test_the_number_of_alternatives_is_the_requested_one_or_the_whole_vocabulary(count: int, told: int) -> None:
    for chunk in stream(UnevenEngine([b"a"]), RULES, PROMPT, GenerationOptions(logprobs=count)):
        assert (chunk.logprobs is None) == (chunk.token_ids == ())
        if chunk.logprobs is not None:
            assert len(chunk.logprobs.top) == told
            assert sum(math.exp(value) for _, value in chunk.logprobs.top) <= 1 + 1e-9


def test_without_logprobs_none_are_given_and_no_logits_are_read() -> None:
    class Unreadable(ScriptedEngine):
        def logits(self) -> NDArray[np.float32]:
            raise AssertionError

    reply = complete(Unreadable([b"ab"]), RULES, PROMPT, GenerationOptions())
    assert reply.logprobs is None


def test_a_bias_that_does_not_fit_is_refused_before_the_prompt_is_computed() -> None:
    engine = ScriptedEngine([b"x"])
    with pytest.raises(OptionError, match="token 256"):
        complete(engine, RULES, PROMPT, GenerationOptions(logit_bias={256: 1.0}))
    assert engine.prompts == []


class WatchedEngine(ScriptedEngine):
    """Records when its generator was closed."""

    closed_after: int | None = None

    def generate(self, options: GenerationOptions, constraint: Constraint | None = None) -> Generator[int, None, None]:
        given = 0
        try:
            for token in super().generate(options, constraint):
                given += 1
                yield token
        finally:
            self.closed_after = given


def test_closing_the_stream_early_closes_the_engines_generator() -> None:
    engine = WatchedEngine([b"first reply", b"second"])
    chunks = stream(engine, RULES, PROMPT, GenerationOptions())
    next(chunks)
    next(chunks)
    chunks.close()
    assert engine.closed_after == 2
    assert complete(engine, RULES, PROMPT, GenerationOptions()).text == "second"


def test_a_stop_closes_the_engines_generator_before_the_last_chunk() -> None:
    engine = WatchedEngine([b"yes\0 and more"])
    chunks = stream(engine, RULES, PROMPT, GenerationOptions())
    outcome = next(chunk for chunk in chunks if chunk.finish_reason)
    assert (outcome.finish_reason, engine.closed_after) == ("stop", 4)


def test_statistics_count_the_prompt_and_what_came_from_the_cache() -> None:
    engine = ScriptedEngine([b"a", b"b"])
    complete(engine, RULES, PROMPT, GenerationOptions())
    longer = [*PROMPT, *b"a, and then?"]
    statistics = complete(engine, RULES, longer, GenerationOptions()).statistics
    assert statistics.prompt_tokens == len(longer)
    assert statistics.cached_prompt_tokens == len(PROMPT) + 1
    assert statistics.generated_tokens == 1


class Clock:
    """A clock that shows `seconds`, which tests set."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds


class SlowEngine(ScriptedEngine):
    """Takes 4 s for a prompt and 2 s for an id."""

    def __init__(self, reply: bytes, clock: Clock) -> None:
        super().__init__([reply])
        self._clock = clock

    def prefill(self, prompt: Sequence[int], on_progress: PrefillProgress | None = None) -> int:
        self._clock.seconds += 4
        return super().prefill(prompt, on_progress)

    def generate(self, options: GenerationOptions, constraint: Constraint | None = None) -> Generator[int, None, None]:
        for token in super().generate(options, constraint):
            self._clock.seconds += 2
            yield token


def test_times_are_the_engines_and_not_the_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(localq.generation, "time", clock)
    measured = None
    for chunk in stream(SlowEngine(b"abcd", clock), RULES, PROMPT, GenerationOptions()):
        clock.seconds += 50
        measured = chunk.statistics
    assert measured is not None
    assert measured.prompt_seconds == 4
    assert measured.time_to_first_token_seconds == 6
    assert measured.decode_seconds == 6
    assert measured.prompt_tokens_per_second == len(PROMPT) / 4
    assert measured.generated_tokens_per_second == 0.5


def statistics(**changed: float | int | None) -> GenerationStatistics:
    values = {
        "prompt_tokens": 120,
        "cached_prompt_tokens": 20,
        "generated_tokens": 41,
        "prompt_seconds": 0.5,
        "decode_seconds": 2.0,
        "time_to_first_token_seconds": 0.6,
    }
    return GenerationStatistics(**(values | changed))  # type: ignore[arg-type]


def test_rates_leave_out_cached_tokens_and_the_first_generated_one() -> None:
    assert statistics().prompt_tokens_per_second == 200
    assert statistics().generated_tokens_per_second == 20


@pytest.mark.parametrize("changed", [{"generated_tokens": 1}, {"generated_tokens": 0}, {"decode_seconds": 0.0}])
def test_a_rate_that_is_not_defined_is_none(changed: dict[str, int]) -> None:
    assert statistics(**changed).generated_tokens_per_second is None
    assert statistics(prompt_seconds=0.0).prompt_tokens_per_second is None
