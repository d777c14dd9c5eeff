"""Turns of replies that are dropped, interrupted, continued by another thread, or closed by another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from localq.errors import EngineError
from localq.turns import ReplyStream, Turns

SECONDS = 10.0  # until a test that hangs fails


class Replies:
    """Replies that consist of numbers, and the names of those that ended."""

    def __init__(self, length: int = 5) -> None:
        self.turns = Turns()
        self.length = length
        self.ended: list[str] = []
        self.running = 0
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()

    def new(self, name: str = "reply") -> ReplyStream:
        return ReplyStream(self.turns, lambda check, is_stopped: self._numbers(name, check))

    def _numbers(self, name: str, check: Callable[[], None]) -> Generator[Any, None, None]:
        self.running += 1
        assert self.running == 1, "two replies at once"
        try:
            for number in range(self.length):
                self.reached.set()
                assert self.gate.wait(SECONDS)
                check()
                yield number
        finally:
            self.running -= 1
            self.ended.append(name)

    def is_free(self) -> bool:
        """Whether another thread gets its turn at once."""
        return in_thread(lambda: list(self.new("probe"))) == list(range(self.length))


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns or raises in another thread, which must end."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert outcome, "the thread hangs"
    return outcome[0]


@pytest.fixture
def replies() -> Replies:
    return Replies()


def test_a_dropped_reply_ends_its_turn(replies: Replies) -> None:
    reply = replies.new()
    next(reply)
    del reply
    assert replies.ended == ["reply"]
    assert replies.is_free()


def test_a_reply_that_is_dropped_while_another_thread_waits_ends_its_turn(replies: Replies) -> None:
    reply = replies.new()
    next(reply)
    done = threading.Event()
    other = threading.Thread(target=lambda: (list(replies.new("other")), done.set()), daemon=True)
    other.start()
    assert not done.wait(0.05)
    del reply
    assert done.wait(SECONDS)
    assert replies.ended == ["reply", "other"]


def test_a_reply_that_was_never_read_has_no_turn(replies: Replies) -> None:
    reply = replies.new()
    assert replies.is_free()
    reply.close()
    assert list(reply) == []
    assert replies.is_free()


def test_an_error_of_the_reader_ends_the_turn(replies: Replies) -> None:
    with pytest.raises(ZeroDivisionError), replies.new() as reply:
        for number in reply:
            1 / number  # type: ignore[operator]
    assert replies.ended == ["reply"]
    assert replies.is_free()


def test_an_error_of_the_reply_ends_the_turn_and_is_raised(replies: Replies) -> None:
    def failing(check: Callable[[], None], is_stopped: Callable[[], bool]) -> Iterator[Any]:
        yield 1
        raise EngineError("no memory")

    reply = ReplyStream(replies.turns, failing)  # type: ignore[arg-type]
    next(reply)
    with pytest.raises(EngineError, match="no memory"):
        next(reply)
    assert list(reply) == []
    assert replies.is_free()


def test_ctrl_c_while_a_token_is_computed_ends_the_turn(replies: Replies) -> None:
    def interrupted(check: Callable[[], None], is_stopped: Callable[[], bool]) -> Iterator[Any]:
        yield 1
        raise KeyboardInterrupt

    reply = ReplyStream(replies.turns, interrupted)  # type: ignore[arg-type]
    next(reply)
    with pytest.raises(KeyboardInterrupt):
        next(reply)
    assert replies.is_free()


def test_closing_from_another_thread_ends_a_reply_that_is_being_computed(replies: Replies) -> None:
    replies.gate.clear()
    reply = replies.new()
    read: list[Any] = []
    reader = threading.Thread(target=lambda: read.extend(reply), daemon=True)
    reader.start()
    assert replies.reached.wait(SECONDS)
    reply.close()  # does not wait for the reader
    replies.gate.set()
    reader.join(SECONDS)
    assert not reader.is_alive()
    assert (read, replies.ended) == ([], ["reply"])
    assert replies.is_free()


def test_stopping_a_reply_while_its_prompt_is_computed_ends_its_turn(replies: Replies) -> None:
    replies.gate.clear()
    reply = replies.new()
    read: list[Any] = []
    reader = threading.Thread(target=lambda: read.extend(reply), daemon=True)
    reader.start()
    assert replies.reached.wait(SECONDS)
    reply.stop()
    replies.gate.set()
    reader.join(SECONDS)
    assert (read, replies.ended) == ([], ["reply"])
    assert replies.is_free()


def test_closing_a_reply_that_waits_for_its_turn_takes_it_out_of_the_queue(replies: Replies) -> None:
    first = replies.new("first")
    next(first)
    waiting = replies.new("waiting")
    outcome: list[Any] = []
    reader = threading.Thread(target=lambda: outcome.append(list(waiting)), daemon=True)
    reader.start()
    waiting.close()
    first.close()
    reader.join(SECONDS)
    assert outcome == [[]] and "waiting" not in replies.ended
    assert replies.is_free()


def test_a_reply_may_be_read_on_by_another_thread(replies: Replies) -> None:
    reply = replies.new()
    assert next(reply) == 0  # type: ignore[comparison-overlap]
    assert in_thread(lambda: next(reply)) == 1
    assert list(reply) == [2, 3, 4]
    assert replies.is_free()


def test_a_thread_that_continued_a_reply_may_begin_another_one(replies: Replies) -> None:
    reply = replies.new()
    next(reply)

    def take_over() -> list[Any]:
        next(reply)
        return list(replies.new("another"))

    assert in_thread(take_over) == [0, 1, 2, 3, 4]
    with pytest.raises(EngineError, match="cut off"):
        next(reply)


def test_a_thread_waits_for_a_reply_that_another_thread_continued(replies: Replies) -> None:
    reply = replies.new()
    next(reply)
    assert in_thread(lambda: next(reply)) == 1
    done = threading.Event()
    other = threading.Thread(target=lambda: (list(replies.new("other")), done.set()), daemon=True)
    other.start()
    assert not done.wait(0.05)
    assert list(reply) == [2, 3, 4]
    assert done.wait(SECONDS)
    assert replies.ended == ["reply", "other"]


def test_two_threads_that_read_one_reply_share_its_pieces(replies: Replies) -> None:
    replies.length = 400
    reply = replies.new()
    parts: list[list[Any]] = [[], []]
    threads = [threading.Thread(target=lambda part=part: part.extend(reply), daemon=True) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert sorted(parts[0] + parts[1]) == list(range(400))
    assert replies.is_free()


def test_after_many_threads_read_drop_close_and_fail_the_turn_is_free(replies: Replies) -> None:
    errors: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for step in range(60):
                reply = replies.new()
                for number in reply:
                    if (seed + step) % 4 == 1 and number == 1:  # type: ignore[comparison-overlap]
                        break
                    if (seed + step) % 4 == 2:
                        reply.close()
                if (seed + step) % 4 == 3:
                    with replies.turns.turn():
                        assert replies.running == 0
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert errors == [] and not any(thread.is_alive() for thread in threads)
    assert replies.is_free()
