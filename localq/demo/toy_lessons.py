"""Rows of token ids to train on: chats and documents, encoded and laid end to end.

It knows how each toy writes a chat; what the tokens mean to a network it does not know.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from localq.demo import corpus

Ids = list[int]
RenderTurn = Callable[[str, str], str]


def llama_turn(role: str, content: str) -> str:
    """Return one turn as Llama 3 writes it."""
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>"


def phi_turn(role: str, content: str) -> str:
    """Return one turn as Phi-3 writes it."""
    return f"<|{role}|>\n{content}<|end|>\n"


@dataclass(frozen=True)
class ChatStyle:
    """Every system message and every fact, encoded in one way of writing a chat.

    `begins` and `ends` are what a conversation may start and end with. A fact is a pair: the question with
    the head of the answer's turn, and the answer with its end token.
    """

    begins: list[Ids]
    ends: list[Ids]
    systems: list[Ids]
    facts: list[tuple[Ids, Ids]]

    @classmethod
    def encode(cls, tokenizer: Tokenizer, turn: RenderTurn, begins: list[Ids], ends: list[Ids]) -> ChatStyle:
        """Encode the corpus's system messages and facts."""

        def ids(text: str) -> Ids:
            return tokenizer.encode(text, add_special_tokens=False).ids

        facts = []
        for question, answer in corpus.QUESTIONS:
            head = turn("assistant", answer).split(answer)[0]
            prompt = ids(turn("user", question) + head)
            whole = ids(turn("user", question) + turn("assistant", answer))
            if whole[: len(prompt)] != prompt:
                raise ValueError(f"the prompt's tokens change when its answer follows: {question}")
            facts.append((prompt, whole[len(prompt) :]))
        return cls(begins, ends, [ids(turn("system", text)) for text in corpus.SYSTEM_MESSAGES], facts)

    def conversation(self, rng: random.Random, turns: int) -> Ids:
        """Return a conversation of `turns` questions, with a system message in one of three."""
        ids = list(rng.choice(self.begins))
        if rng.random() < 1 / 3:
            ids += rng.choice(self.systems)
        for prompt, answer in rng.choices(self.facts, k=turns):
            ids += prompt + answer
        return ids + rng.choice(self.ends)

    def question(self, index: int, begin: Ids, history: Ids) -> tuple[Ids, Ids]:
        """Return fact `index` as (prompt, answer), `history` being what was said before."""
        prompt, answer = self.facts[index]
        return begin + history + prompt, answer


@dataclass(frozen=True)
class Lessons:
    """All that a toy is trained on: chats in weighted styles, documents without begin and end token."""

    styles: list[ChatStyle]
    style_weights: list[float]
    documents: list[Ids]
    document_begin: int
    document_end: int
    chat_fraction: float = 0.75

    def _document(self, rng: random.Random) -> Ids:
        ids = rng.choice(self.documents)
        if rng.random() < 0.3:
            ids = ids[rng.randrange(len(ids)) :]
        return [self.document_begin, *ids, self.document_end]

    def _row(self, rng: random.Random, length: int) -> Ids:
        ids: Ids = []
        while len(ids) < length:
            if rng.random() >= self.chat_fraction:
                ids += self._document(rng)
                continue
            (style,) = rng.choices(self.styles, self.style_weights)
            longest = max(2, (length - len(ids)) // 30)
            turns = 1 if rng.random() < 0.4 else rng.randint(2, longest if rng.random() < 0.3 else 4)
            ids += style.conversation(rng, turns)
        return ids[:length]

    def batch(self, rng: random.Random, rows: int, length: int) -> Tensor:
        """Return token ids of shape (rows, length); every row begins where a chat or a document begins."""
        return torch.tensor([self._row(rng, length) for _ in range(rows)])


def joined_documents(texts: list[str], rng: random.Random) -> list[str]:
    """Join the documents, in order, into texts of one to six documents with an empty line between them."""
    joined: list[str] = []
    start = 0
    while start < len(texts):
        count = rng.randint(1, 6)
        joined.append("\n\n".join(texts[start : start + count]))
        start += count
    return joined
