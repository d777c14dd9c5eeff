"""Which tokens a conversation computes again: in each turn, after an undone question, after a rewriting template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from localq import Completion, Model, load
from localq.text.chat_template import ChatTemplate

FORMS = ("toy-llama:gguf-q4_k_m", "toy-llama:mlx-4bit", "toy-phi:gguf-q4_k_m", "toy-phi:mlx-4bit")
COUNTRIES = ("France", "Italy", "Spain", "Japan", "Egypt", "Greece", "Peru", "Norway", "Kenya", "Cuba")

ONLY_THE_LATEST_IN_FULL = (
    "{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content if loop.last else message.content[:4] }}<|eot_id|>{% endfor %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
"""Shortens earlier messages when a later one comes, as templates do with a model's reasoning."""


@pytest.fixture(params=FORMS)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with load(request.param) as opened:
        yield opened


class Conversation:
    """Messages, and what an engine's cache must hold of them: all but the newest generated token."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.messages: list[dict[str, str]] = []
        self.cached: tuple[int, ...] = ()

    def ask(self, question: str) -> Completion:
        """Ask, and check that exactly what the cache can't have is computed."""
        self.messages.append({"role": "user", "content": question})
        reply = self.model.generate(self.messages, max_tokens=12)
        self.messages.append({"role": "assistant", "content": reply.text})
        prompt = reply.prompt_token_ids
        assert reply.statistics.cached_prompt_tokens == min(shared(self.cached, prompt), len(prompt) - 1)
        self.cached = (*prompt, *reply.generated_token_ids[:-1])
        return reply


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def computed(reply: Completion) -> int:
    return reply.statistics.prompt_tokens - reply.statistics.cached_prompt_tokens


def test_each_of_ten_turns_computes_only_what_is_new(model: Model) -> None:
    conversation = Conversation(model)
    replies = [conversation.ask(f"Where is {country}?") for country in COUNTRIES[: _turns_that_fit(model)]]
    assert len(replies) >= 5
    for before, reply in zip(replies, replies[1:], strict=False):
        new = reply.statistics.prompt_tokens - before.statistics.prompt_tokens - len(before.generated_token_ids)
        # The token that ended the reply was generated and never computed; text and back may change a reply's last ids.
        assert computed(reply) <= new + 1 + len(before.generated_token_ids)
        assert computed(reply) < reply.statistics.prompt_tokens


def test_the_last_question_asked_again_computes_one_token(model: Model) -> None:
    conversation = Conversation(model)
    conversation.ask("Where is France?")
    first = conversation.ask("Where is Italy?")
    del conversation.messages[-2:]
    again = conversation.ask("Where is Italy?")
    assert computed(again) == 1
    assert again.generated_token_ids == first.generated_token_ids


def test_another_question_after_one_was_taken_back_computes_what_differs(model: Model) -> None:
    conversation = Conversation(model)
    conversation.ask("Where is France?")
    kept = len(model.prompt_token_ids(conversation.messages[:1]))
    conversation.ask("Where is Italy?")
    del conversation.messages[-2:]
    reply = conversation.ask("Why is Italy?")
    assert reply.statistics.cached_prompt_tokens >= kept
    fresh = model.generate([{"role": "user", "content": "Once"}], max_tokens=2)
    assert fresh.statistics.cached_prompt_tokens < kept
    assert model.generate(conversation.messages[:-1], max_tokens=12).text == reply.text


def test_a_template_that_rewrites_earlier_turns_is_computed_from_the_first_difference() -> None:
    with load("toy-llama:gguf-q4_k_m") as model:
        model.chat_template = ChatTemplate(ONLY_THE_LATEST_IN_FULL, model.tokenizer.special_tokens)
        conversation = Conversation(model)
        conversation.ask("Where is France?")
        reply = conversation.ask("Where is Italy?")
        assert 0 < reply.statistics.cached_prompt_tokens < len(model.prompt_token_ids(conversation.messages[:1]))
        with load("toy-llama:gguf-q4_k_m") as fresh:
            fresh.chat_template = model.chat_template
            assert fresh.generate(conversation.messages[:-1], max_tokens=12).text == reply.text


def _turns_that_fit(model: Model) -> int:
    turn = len(model.prompt_token_ids("Where is Norway?")) + 13
    return min(len(COUNTRIES), model.context_length // turn)
