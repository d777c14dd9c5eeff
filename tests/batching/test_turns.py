"""Who is computed when: nobody waits for nothing, and what ends leaves its place."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localq.batching import Batcher, ReplyRequest, Ticket
from localq.engines.base import Feed
from localq.errors import EngineError
from localq.model import Model
from tests.batching.asking import (
    GREEDY,
    PROMPT,
    SAMPLED,
    WAIT_SECONDS,
    Listener,
    alone,
    asked,
    fed_tokens,
    some_prompt,
    wait_until,
)


@pytest.mark.parametrize("form", ["gguf-f32", "mlx-4bit"])
def test_a_common_beginning_is_computed_once(
    opened: Callable[..., Model], form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(form, sequences=4)
    fed = fed_tokens(model, monkeypatch)
    system = some_prompt(150)
    prompts = [[*system, 5, number] for number in range(10, 14)]
    with closing(Batcher(model)) as batcher:
        first = [listener.wait() for listener in [asked(batcher, prompt, GREEDY) for prompt in prompts]]
        assert sum(map(sum, fed)) < 150 + 4 * (32 + GREEDY.max_tokens)  # not 600
        assert sum(listener.cached_tokens >= 120 for listener in first) == 3
        # What is left of them: the whole conversation goes on in its place, and the others keep theirs.
        for prompt, listener in zip(prompts, first, strict=True):
            longer = [*prompt, *listener.ids[:-1], 9]
            assert asked(batcher, longer, GREEDY).wait().cached_tokens == len(longer) - 1
        # One place is needed: the least recently used one is given up.
        other = asked(batcher, some_prompt(40, 2), GREEDY).wait()
        assert other.cached_tokens == 0
        assert asked(batcher, [*prompts[3], 9], GREEDY).wait().cached_tokens >= 152


def test_a_long_prompt_stalls_the_others_for_no_more_than_a_chunk(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(sequences=2)
    fed = fed_tokens(model, monkeypatch)
    with closing(Batcher(model)) as batcher:
        quick = Listener()
        later: list[Listener] = []
        quick.at_token[2] = lambda: later.append(asked(batcher, some_prompt(400), GREEDY))
        batcher.submit(ReplyRequest(tuple(PROMPT), GREEDY), quick)
        quick.wait()
        later[0].wait()
    # One token of the first reply, and a chunk of the other's prompt, by turns.
    chunk = model.engine.chunk_tokens
    assert [[chunk], [1], [chunk], [1], [chunk]] in [fed[start : start + 5] for start in range(len(fed))]
    assert max(map(max, fed)) <= chunk


def test_cancelled_replies_free_their_places_and_get_nothing_more(opened: Callable[..., Model]) -> None:
    model = opened(sequences=2)
    with closing(Batcher(model)) as batcher:
        listeners = [Listener() for _ in range(6)]
        tickets: list[Ticket] = []
        for number, listener in enumerate(listeners):
            listener.at_token[number + 1] = lambda number=number: tickets[number].cancel()  # type: ignore[misc]
        with model.turn():  # no token comes before all tickets are there
            for listener in listeners:
                tickets.append(batcher.submit(ReplyRequest(tuple(PROMPT), replace(GREEDY, max_tokens=400)), listener))
        # All of them were cancelled at a token, so the last request gets a place at last.
        assert len(asked(batcher, PROMPT, GREEDY).wait().ids) == GREEDY.max_tokens
        assert all(len(listener.ids) == number + 1 for number, listener in enumerate(listeners))
        assert not any(listener.over.is_set() for listener in listeners)
        wait_until(lambda: batcher.running == batcher.waiting == 0)


def test_a_reply_is_cancelled_in_its_prompt_or_in_the_queue(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(sequences=1)
    fed = fed_tokens(model, monkeypatch)
    with closing(Batcher(model)) as batcher:
        tickets: list[Ticket] = []
        quick = Listener()
        quick.at_token[1] = lambda: [ticket.cancel() for ticket in tickets[1:]]
        never = Listener()
        with model.turn():  # nothing begins before all are there
            tickets.append(batcher.submit(ReplyRequest(tuple(PROMPT), GREEDY), quick))
            tickets.append(batcher.submit(ReplyRequest(tuple(some_prompt(300)), GREEDY), never))
        quick.wait()
        assert len(asked(batcher, PROMPT, GREEDY).wait().ids) == GREEDY.max_tokens
        assert (never.ids, never.error) == ([], None)
        assert sum(map(sum, fed)) < 300


@pytest.mark.parametrize(
    ("sequences", "asked_by", "begun"),
    [(1, "aaaaaabbc", "abcabaaaa"), (1, "aaaa", "aaaa"), (2, "aaaabbbb", "abababab"), (2, "aabbccdd", "abcdabcd")],
)
def test_clients_get_their_places_by_turns(
    opened: Callable[..., Model], sequences: int, asked_by: str, begun: str
) -> None:
    model, order = opened(sequences=sequences), []
    with closing(Batcher(model)) as batcher:
        listeners = [Listener() for _ in asked_by]
        with model.turn():  # nothing begins before all are there
            for number, (client, listener) in enumerate(zip(asked_by, listeners, strict=True)):
                listener.at_token[1] = lambda client=client: order.append(client)  # type: ignore[misc]
                prompt = tuple(some_prompt(3, seed=number))
                batcher.submit(ReplyRequest(prompt, replace(GREEDY, max_tokens=4), client=client), listener)
        for listener in listeners:
            listener.wait()
    assert "".join(order) == begun


def test_a_cancelled_reply_leaves_the_queue_at_once(opened: Callable[..., Model]) -> None:
    with closing(Batcher(opened(sequences=1))) as batcher:
        running = asked(batcher, PROMPT, replace(GREEDY, max_tokens=400))
        ticket = batcher.submit(ReplyRequest(tuple(PROMPT), GREEDY), Listener())
        ticket.cancel()
        wait_until(lambda: batcher.waiting == 0)
        assert not running.over.is_set()
        running.wait()


def test_a_failure_of_the_engine_reaches_every_running_reply_and_later_ones_succeed(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(sequences=2)
    with closing(Batcher(model)) as batcher:
        step, failing = model.engine.step, threading.Event()

        def fails(feeds: Sequence[Feed]) -> Any:
            if failing.is_set():
                raise EngineError("no memory left")
            return step(feeds)

        monkeypatch.setattr(model.engine, "step", fails)
        first = Listener()
        first.at_token[3] = failing.set
        with model.turn():
            batcher.submit(ReplyRequest(tuple(PROMPT), GREEDY), first)
            others = [asked(batcher, some_prompt(9, number), GREEDY) for number in range(4)]
        for listener in (first, *others):
            assert str(listener.wait().error) == "no memory left"
        failing.clear()
        assert len(asked(batcher, PROMPT, GREEDY).wait().ids) == GREEDY.max_tokens


def test_an_unexpected_failure_ends_everything_with_an_error(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(sequences=1)
    batcher = Batcher(model)
    with monkeypatch.context() as patched, model.turn():
        patched.setattr(model.engine, "step", lambda feeds: 1 / 0)
        listeners = [asked(batcher, PROMPT, GREEDY) for _ in range(3)]
        patched.undo()
        monkeypatch.setattr(model.engine, "step", lambda feeds: 1 / 0)
    for listener in listeners:
        assert "ZeroDivisionError" in str(listener.wait().error)
    with pytest.raises(EngineError, match="closed"):
        asked(batcher, PROMPT, GREEDY)
    batcher.close()


def test_closing_ends_running_and_waiting_replies_with_an_error(opened: Callable[..., Model]) -> None:
    model = opened(sequences=2)
    batcher = Batcher(model)
    began = threading.Event()
    first = Listener()
    first.at_token[1] = began.set
    batcher.submit(ReplyRequest(tuple(PROMPT), replace(GREEDY, max_tokens=500)), first)
    others = [asked(batcher, PROMPT, replace(GREEDY, max_tokens=500)) for _ in range(4)]
    assert began.wait(WAIT_SECONDS)
    batcher.close()
    batcher.close()
    assert all("closed" in str(listener.wait().error) for listener in (first, *others))
    with pytest.raises(EngineError, match="closed"):
        asked(batcher, PROMPT, GREEDY)
    assert len(alone(model, PROMPT, GREEDY)) == GREEDY.max_tokens  # the model is as before


def test_requests_come_from_many_threads_and_a_single_reply_takes_its_turn(opened: Callable[..., Model]) -> None:
    model = opened(sequences=4, reproducible=True)
    wanted = [(some_prompt(5 + number, number), replace(SAMPLED, seed=number)) for number in range(12)]
    expected = [alone(model, *each) for each in wanted]
    with closing(Batcher(model)) as batcher, ThreadPoolExecutor(13) as threads:
        replies = [threads.submit(lambda each=each: asked(batcher, *each).wait().ids) for each in wanted]  # type: ignore[misc]
        single = threads.submit(alone, model, *wanted[0])
        assert [reply.result() for reply in replies] == expected
        assert single.result() == expected[0]


@pytest.mark.parametrize("form", ["gguf-f32", "mlx-4bit"])
def test_a_process_ends_well_with_an_open_batcher(toys: dict[str, Path], form: str) -> None:
    code = f"""
from pathlib import Path
from localq.batching import Batcher, ReplyRequest
from localq.model import open_form
from localq.options import GenerationOptions, LoadOptions
model = open_form(Path({str(toys[form])!r}), LoadOptions(sequences=2))
batcher = Batcher(model)
import threading
began = threading.Event()
for number in range(3):
    batcher.submit(ReplyRequest((5, 6, number), GenerationOptions(max_tokens=10**6)), lambda event: began.set())
began.wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")


def test_prompts_that_wait_are_computed_in_one_step_unless_as_many_replies_run(
    opened: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(sequences=8)
    steps = fed_tokens(model, monkeypatch)
    chunk = model.engine.chunk_tokens
    assert model.engine.step_tokens == 4 * chunk == 256
    with closing(Batcher(model)) as batcher:
        with model.turn():
            first = [asked(batcher, some_prompt(chunk - 4, seed), GREEDY) for seed in range(3)]
        later: list[Listener] = []
        first[0].at_token[3] = lambda: later.extend(asked(batcher, some_prompt(90, seed), GREEDY) for seed in (4, 5))
        for listener in [*first, *later]:
            listener.wait()
    assert steps[0] == [chunk - 4] * 3
    prompts = [step for step in steps[1:] if max(step) > 1]
    assert prompts == [[chunk], [chunk], [90 - chunk] * 2]  # three replies ran beside two prompts
