"""Token ids to text, as they come: holds back half characters and half stop strings.

Knows nothing of engines or end tokens.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence

from localq.errors import OptionError
from localq.text.tokenizer import Tokenizer


class TextStream:
    """The text of one reply, released as soon as it is certain.

    Everything released, joined, is the decoded text of all ids, up to the first stop string. The first is the
    one that is complete first; where several end at the same character, the one that begins earliest. So the
    text does not depend on where one token ends and the next begins. Time per token grows with its own length
    alone.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), strip_leading_space: bool = False) -> None:
        """`strip_leading_space` drops a space at the very beginning; see `Tokenizer.strips_leading_space`."""
        if not all(stop):
            raise OptionError(f"stop is {tuple(stop)!r}; expected no empty string")
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = strip_leading_space
        self._automaton = _StopAutomaton(stop)
        self._state = 0
        self._held = ""
        self._shown = 0
        self.stopped = False
        """Whether a stop string is complete; nothing more comes after it."""

    def begin_with(self, token_ids: Sequence[int]) -> None:
        """Take up a reply whose text so far was shown, also what is held back of it."""
        for token_id in token_ids:
            self.push(token_id)
        self._shown = len(self._held)

    def push(self, token_id: int) -> str:
        """Text that is certain now; often empty, and always once `stopped` is true."""
        return self._new(self._release(self._utf8.decode(self._tokenizer.token_bytes(token_id))))

    def finish(self) -> str:
        """What was held back; call it once, after the last id. Half a character becomes U+FFFD."""
        released = self._release(self._utf8.decode(b"", final=True))
        rest, self._held = self._held, ""
        return self._new(released if self.stopped else released + rest)

    def _new(self, text: str) -> str:
        """Without the first characters, which were shown already."""
        skipped = min(self._shown, len(text))
        self._shown -= skipped
        return text[skipped:]

    def _release(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        if self._at_start:
            self._at_start = False
            text = text.removeprefix(" ")
        pending = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            self._state = self._automaton.next_state(self._state, character)
            if length := self._automaton.complete[self._state]:
                self.stopped = True
                self._held = ""
                return pending[: position - length]
        certain = len(pending) - self._automaton.depth[self._state]
        self._held = pending[certain:]
        return pending[:certain]


class _StopAutomaton:
    """Aho and Corasick's automaton (1975): finds the stop strings in one pass over the text.

    A state is the longest end of the text so far that begins a stop string; state 0 is the empty one.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self.depth = [0]
        """Characters of each state: as many must be held back."""
        self.complete = [0]
        """Length of the longest stop string that ends in each state; 0 for none."""
        self._children: list[dict[str, int]] = [{}]
        self._fallback = [0]
        for text in stop:
            self._add(text)
        self._link()

    def next_state(self, state: int, character: str) -> int:
        """The state after one more character."""
        while character not in self._children[state]:
            if state == 0:
                return 0
            state = self._fallback[state]
        return self._children[state][character]

    def _add(self, text: str) -> None:
        state = 0
        for character in text:
            if character not in self._children[state]:
                self._children[state][character] = len(self.depth)
                self.depth.append(self.depth[state] + 1)
                self.complete.append(0)
                self._children.append({})
                self._fallback.append(0)
            state = self._children[state][character]
        self.complete[state] = len(text)

    def _link(self) -> None:
        # Breadth first: the fallback of a state is shorter than the state, so it is already linked.
        waiting = deque(self._children[0].values())
        while waiting:
            state = waiting.popleft()
            for character, child in self._children[state].items():
                fallback = self.next_state(self._fallback[state], character)
                self._fallback[child] = fallback
                self.complete[child] = self.complete[child] or self.complete[fallback]
                waiting.append(child)
