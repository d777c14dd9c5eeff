"""A text as windows of token ids, cut and scored as llama-perplexity does. Knows tokenizers, but no models.

The text is tokenized as a whole, with what the tokenizer puts in front. Windows lie side by side; what is left over at
the end is not used. Where the tokenizer puts a beginning-of-text token in front of texts, it takes the place of each
window's first token. A window of n tokens has a first scored position, n // 2 by default: from there on every position
but the last foretells a token of the window. So n - first - 1 positions are scored, the same ones for perplexity as
for divergence.
"""

from __future__ import annotations

import codecs
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from localq.errors import OptionError
from localq.text.tokenizer import Tokenizer

DEFAULT_WINDOW_TOKENS = 512
DEFAULT_MOST_WINDOWS = 32

_MOST_BYTES_PER_TOKEN = 64
"""No text has longer ones on average: what comes behind that many for each token that is used is not looked at."""


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """How a text is cut."""

    window_tokens: int = DEFAULT_WINDOW_TOKENS
    first_scored: int | None = None
    """Index of the first position in a window that is scored; None takes `window_tokens` // 2."""
    most_windows: int = DEFAULT_MOST_WINDOWS

    def __post_init__(self) -> None:
        if self.window_tokens < 2:
            raise OptionError(f"--window is {self.window_tokens}; expected at least 2 tokens")
        if self.most_windows < 1:
            raise OptionError(f"--windows is {self.most_windows}; expected at least 1")
        if self.first_scored is not None and not 0 <= self.first_scored <= self.window_tokens - 2:
            raise OptionError(
                f"--score-from is {self.first_scored}; expected between 0 and {self.window_tokens - 2}",
                f"a window of {self.window_tokens} tokens foretells nothing behind that; leave it out for the half",
            )

    @property
    def first(self) -> int:
        """Index of the first position that is scored."""
        if self.first_scored is not None:
            return self.first_scored
        return min(self.window_tokens // 2, self.window_tokens - 2)  # a window of two tokens has one to foretell

    @property
    def scored_positions(self) -> int:
        """Of one window."""
        return self.window_tokens - self.first - 1


@dataclass(frozen=True, slots=True)
class Text:
    """What is evaluated on."""

    name: str
    """A file's path, or where else it comes from."""
    content: str
    sha256: str
    """Of the whole file."""


@dataclass(frozen=True, slots=True)
class Windows:
    """What a tokenizer makes of a text."""

    tokens: tuple[tuple[int, ...], ...]
    """The ids that a model is given, window by window."""
    begin_token: int | None
    """The first id of each, where the tokenizer puts one in front of texts."""
    special_tokens: tuple[str, ...]
    """Special tokens that are written in the text. llama-perplexity takes them for plain text."""


def read_text(file: Path, settings: WindowSettings) -> Text:
    """A UTF-8 file, or standard input for `-`. Raises OptionError for what can't be read, or is not UTF-8."""
    try:
        if str(file) == "-":
            return decode_text("standard input", sys.stdin.buffer.read(), settings)
        return decode_text(str(file), file.read_bytes(), settings)
    except OSError as error:
        raise OptionError(f"can't read {file}: {error.strerror}", "give a text file with --text") from error


def decode_text(name: str, data: bytes, settings: WindowSettings) -> Text:
    """As much of a text in UTF-8 as all windows need. Raises OptionError for other bytes."""
    most_bytes = settings.window_tokens * settings.most_windows * _MOST_BYTES_PER_TOKEN
    try:
        content = codecs.getincrementaldecoder("utf-8")().decode(data[:most_bytes], final=len(data) <= most_bytes)
    except UnicodeDecodeError as error:
        raise OptionError(
            f"{name} is not UTF-8: byte {data[error.start]:#04x} at {error.start:,}",
            "save it as UTF-8, or give another text with --text",
        ) from error
    return Text(name, content, hashlib.sha256(data).hexdigest())


def cut_windows(text: Text, tokenizer: Tokenizer, settings: WindowSettings) -> Windows:
    """The windows of a text. Raises OptionError for a text that does not fill one."""
    # llama.cpp leaves out a file's last line end.
    tokens = tokenizer.encode(text.content.removesuffix("\n"), add_special_tokens=True)
    size = settings.window_tokens
    if len(tokens) < size:
        raise OptionError(
            f"{text.name} has {len(tokens):,} tokens; one window needs {size:,}",
            "give a longer text with --text, or smaller windows with --window",
        )
    begin_token = _begin_token(tokenizer)
    count = min(len(tokens) // size, settings.most_windows)
    windows = [tokens[number * size : (number + 1) * size] for number in range(count)]
    if begin_token is not None:
        windows = [[begin_token, *window[1:]] for window in windows]
    inner = {token for window in windows for token in window[1:]}
    special = [name for name, token in tokenizer.added_tokens.items() if token in inner]
    return Windows(
        tokens=tuple(map(tuple, windows)),
        begin_token=begin_token,
        special_tokens=tuple(name for name in special if not tokenizer.token_bytes(tokenizer.added_tokens[name])),
    )


def first_difference(windows: Windows, others: Windows) -> str | None:
    """Where two tokenizers' windows differ first, in words; None where they are the same."""
    for number, (one, other) in enumerate(zip(windows.tokens, others.tokens, strict=False)):
        for index, (token, other_token) in enumerate(zip(one, other, strict=True)):
            if token != other_token:
                return f"token {index} of window {number + 1} is {token} in the one and {other_token} in the other"
    if len(windows.tokens) != len(others.tokens):
        return f"the text has {len(windows.tokens)} windows in the one and {len(others.tokens)} in the other"
    return None


def _begin_token(tokenizer: Tokenizer) -> int | None:
    """What the tokenizer puts in front of a text."""
    alone, framed = (tokenizer.encode("a", add_special_tokens=framing) for framing in (False, True))
    return framed[0] if framed[: len(alone)] != alone else None
