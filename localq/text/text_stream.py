"""Token ids to text, as they come: holds back incomplete characters and what may become a stop string.

Knows nothing of engines or end tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from localq.errors import OptionError
from localq.text.tokenizer import Tokenizer


class TextStream:
    """The text of one reply, released as soon as it is certain.

    Everything released, joined, is the decoded text of all ids, up to the first stop string. The first is the
    one that is complete first; where several end at the same character, the one that begins earliest. So the
    text does not depend on where one token ends and the next begins. The time for a token depends on its length and on
    the stop strings, and not on the length of the reply.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), strip_leading_space: bool = False) -> None:
        """`strip_leading_space` drops a space at the very beginning; see `Tokenizer.strips_leading_space`."""
        if not all(stop):
            raise OptionError(f"stop is {tuple(stop)!r}; expected no empty string")
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start = strip_leading_space
        self._stop = tuple(stop)
        self._first_characters = {text[0] for text in stop}
        self._longest = max(map(len, stop), default=0)
        self._held = ""
        self._known = 0
        self.stopped = False
        """Whether a stop string is complete; nothing more comes after it."""

    def begin_with(self, token_ids: Sequence[int]) -> None:
        """Continue a reply whose ids and whole text are known: only what follows them is released."""
        for token_id in token_ids:
            self.push(token_id)
        self._known = len(self._held)

    def push(self, token_id: int) -> str:
        """Text that is certain now; often empty, and always once `stopped` is true."""
        return self._new(self._release(self._utf8.decode(self._tokenizer.token_bytes(token_id))))

    def finish(self) -> str:
        """What was held back; call it once, after the last id. Half a character becomes U+FFFD."""
        released = self._release(self._utf8.decode(b"", final=True))
        rest, self._held = self._held, ""
        return self._new(released + rest)

    def _new(self, text: str) -> str:
        """Without what the reader knows already."""
        skipped = min(self._known, len(text))
        self._known -= skipped
        return text[skipped:]

    def _release(self, text: str) -> str:
        if self.stopped or not text:
            return ""
        if self._at_start:
            self._at_start = False
            text = text.removeprefix(" ")
        if not self._stop:
            return text
        text = self._held + text
        complete = [(text.index(stop) + len(stop), -len(stop)) for stop in self._stop if stop in text]
        if complete:
            end, negative_length = min(complete)
            self.stopped, certain = True, end + negative_length
            self._held = ""
        else:
            certain = self._begin_of_stop(text)
            self._held = text[certain:]
        return text[:certain]

    def _begin_of_stop(self, text: str) -> int:
        """Where the longest end of `text` that begins a stop string starts; `len(text)` where there is none."""
        for start in range(max(0, len(text) - self._longest), len(text)):
            if text[start] in self._first_characters and any(stop.startswith(text[start:]) for stop in self._stop):
                return start
        return len(text)
