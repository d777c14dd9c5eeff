"""Replies computed together: each is the one that its request gets alone, and nobody waits for nothing."""

from __future__ import annotations

import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localq.batching import Batcher, ReplyRequest, Ticket
from localq.conversion.convert import convert
from localq.engines.base import Feed
from localq.errors import EngineError, LocalqError, OptionError, PromptTooLongError
from localq.generation import Chunk
from localq.hardware import llama_cpp_has_gpu
from localq.model import Model, open_form
from localq.options import GenerationOptions, LoadOptions
from tests.contracts.test_sequences import Listed

FORMS = ["gguf-q4_k_m", "gguf-f32", "mlx-4bit"]
PROMPT = [5, 17, 203, 91, 64, 8]
GREEDY = GenerationOptions(max_tokens=12)
SAMPLED = GenerationOptions(max_tokens=12, temperature=1.5)
WAIT_SECONDS = 60


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of the toy Phi in each form."""
    artifacts = convert("toy-phi", FORMS, models_dir=tmp_path_factory.mktemp("models"))
    return {artifact.manifest.recipe: artifact.folder for artifact in artifacts}


@pytest.fixture
def opened(toys: dict[str, Path]) -> Iterator[Callable[..., Model]]:
    """Opens a toy whose replies don't end by themselves; closed after the test."""
    models: list[Model] = []

    def open_toy(form: str = "gguf-f32", **options: Any) -> Model:
        model = open_form(toys[form], LoadOptions(**{"context_length": 512, **options}))
        model.end_tokens = frozenset()
        models.append(model)
        return model

    yield open_toy
    for model in models:
        model.close()


class Broken(Listed):
    """A constraint that fails after two tokens."""

    def __init__(self) -> None:
        super().__init__([40, 50])

    def mask(self) -> np.ndarray | None:
        if len(self.accepted) == 2:
            raise OptionError("this grammar is broken")
        return super().mask()


class Listener:
    """What one request got."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.last: Chunk | None = None
        self.error: LocalqError | None = None
        self.at_token: dict[int, Callable[[], object]] = {}
        self.over = threading.Event()

    def __call__(self, event: Chunk | LocalqError) -> None:
        assert not self.over.is_set(), "nothing comes after the end"
        if isinstance(event, LocalqError):
            self.error = event
        else:
            self.ids += event.token_ids
            self.text += event.text
            self.last = event
        if self.error or (self.last and self.last.finish_reason):
            self.over.set()
        elif len(self.ids) in self.at_token:
            self.at_token.pop(len(self.ids))()

    def wait(self) -> Listener:
        assert self.over.wait(WAIT_SECONDS)
        return self

    @property
    def cached_tokens(self) -> int:
        assert self.error is None and self.last is not None and self.last.statistics is not None
        return self.last.statistics.cached_prompt_tokens


def asked(batcher: Batcher, prompt: Sequence[int], options: GenerationOptions, **more: Any) -> Listener:
    listener = Listener()
    batcher.submit(ReplyRequest(tuple(prompt), options, **more), listener)
    return listener


def alone(model: Model, prompt: Sequence[int], options: GenerationOptions) -> list[int]:
    return [token for chunk in model.stream_ids(prompt, options) for token in chunk.token_ids]


def some_prompt(length: int, seed: int = 0) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, 600, length)]


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
        assert sum(fed) < 150 + 4 * (32 + GREEDY.max_tokens)  # not 600
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
    assert [chunk, 1, chunk, 1, chunk] in [fed[start : start + 5] for start in range(len(fed))]
    assert max(fed) <= chunk


def test_cancelled_replies_free_their_places_and_get_nothing_more(opened: Callable[..., Model]) -> None:
    with closing(Batcher(opened(sequences=2))) as batcher:
        listeners = [Listener() for _ in range(6)]
        tickets: list[Ticket] = []
        for number, listener in enumerate(listeners):
            listener.at_token[number + 1] = lambda number=number: tickets[number].cancel()  # type: ignore[misc]
        hold = threading.Lock()
        with hold:
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
        assert sum(fed) < 300


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


def fed_tokens(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of tokens of every feed that the engine gets."""
    fed: list[int] = []
    step = model.engine.step

    def watched(feeds: Sequence[Feed]) -> Any:
        fed.extend(len(feed.tokens) for feed in feeds)
        return step(feeds)

    monkeypatch.setattr(model.engine, "step", watched)
    return fed


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)
