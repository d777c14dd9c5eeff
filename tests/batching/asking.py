"""Requests to a Batcher, and what came of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from localq.batching import Batcher, ReplyRequest
from localq.engines.base import Feed
from localq.errors import LocalqError
from localq.generation import Chunk
from localq.model import Model
from localq.options import GenerationOptions

FORMS = ["gguf-q4_k_m", "gguf-f32", "mlx-4bit"]
PROMPT = [5, 17, 203, 91, 64, 8]
GREEDY = GenerationOptions(max_tokens=12)
SAMPLED = GenerationOptions(max_tokens=12, temperature=1.5)
WAIT_SECONDS = 60


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


def fed_tokens(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Grows by the numbers of tokens that the engine gets in a step."""
    fed: list[list[int]] = []
    step = model.engine.step

    def watched(feeds: Sequence[Feed]) -> Any:
        fed.append([len(feed.tokens) for feed in feeds])
        return step(feeds)

    monkeypatch.setattr(model.engine, "step", watched)
    return fed


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)
