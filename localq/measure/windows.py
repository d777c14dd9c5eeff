"""A text as windows of token ids, cut and scored as llama-perplexity does it.

The text is tokenized as a whole, with the special tokens that the tokenizer adds. Windows lie side by side; tokens
left over at the end are not used. If the tokenizer puts a begin-of-text token in front of a text, that token replaces
the first token of every window. Positions n // 2 to n - 2 of a window of n tokens are scored, unless chosen otherwise:
each by how well it predicts the token after it. Perplexity and divergence use the same positions.
"""

from __future__ import annotations

import codecs
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from localq.disk import reason
from localq.errors import OptionError
from localq.text.tokenizer import Tokenizer

DEFAULT_MOST_WINDOWS = 32

_MOST_BYTES_PER_TOKEN = 64
"""More than any text has on average: bytes beyond this many for each used token are not tokenized."""


@dataclass(frozen=True, slots=True)
class Text:
    """The text of an evaluation."""

    name: str
    """The path of a file, or where else the text is from."""
    content: str
    """As much of it as the windows need."""
    sha256: str
    """Of the whole file."""


@dataclass(frozen=True, slots=True)
class Windows:
    """A text as a tokenizer cuts it."""

    tokens: tuple[tuple[int, ...], ...]
    """The ids that a model computes, window by window."""
    begin_token: int | None
    """The first id of every window, if the tokenizer puts one in front of a text."""
    special_tokens: tuple[str, ...]
    """Special tokens that the text contains. llama-perplexity reads them as plain text."""


def read_text(file: Path, most_tokens: int) -> Text:
    """A UTF-8 file, or standard input for `-`. Raises OptionError."""
    try:
        if str(file) == "-":
            return decode_text("standard input", sys.stdin.buffer.read(), most_tokens)
        return decode_text(str(file), file.read_bytes(), most_tokens)
    except OSError as error:
        raise OptionError(f"can't read {file}: {reason(error)}", "give a text file with --text") from error


def decode_text(name: str, data: bytes, most_tokens: int) -> Text:
    """As much of a text in UTF-8 as so many tokens need. Raises OptionError for bytes that are not UTF-8."""
    most_bytes = most_tokens * _MOST_BYTES_PER_TOKEN
    try:
        content = codecs.getincrementaldecoder("utf-8")().decode(data[:most_bytes], final=len(data) <= most_bytes)
    except UnicodeDecodeError as error:
        raise OptionError(
            f"{name} is not UTF-8: byte {data[error.start]:#04x} at {error.start:,}",
            "save it as UTF-8, or give another text with --text",
        ) from error
    return Text(name, content, hashlib.sha256(data).hexdigest())


def cut_windows(text: Text, tokenizer: Tokenizer, size: int, most_windows: int) -> Windows:
    """The windows of a text, each of `size` tokens. Raises OptionError for a text that is shorter than one."""
    # llama.cpp drops the newline at the end of a file.
    tokens = tokenizer.encode(text.content.removesuffix("\n"), add_special_tokens=True)
    if len(tokens) < size:
        raise OptionError(
            f"{text.name} has {len(tokens):,} tokens; one window needs {size:,}",
            "give a longer text with --text, or smaller windows with --window",
        )
    begins_with = begin_token(tokenizer)
    count = min(len(tokens) // size, most_windows)
    windows = [tuple(tokens[number * size : (number + 1) * size]) for number in range(count)]
    if begins_with is not None:
        windows = [(begins_with, *window[1:]) for window in windows]
    inner = {token for window in windows for token in window[1:]}
    added = [(name, token) for name, token in tokenizer.added_tokens.items() if token in inner]
    special = tuple(name for name, token in added if not tokenizer.token_bytes(token))
    return Windows(tuple(windows), begins_with, special)


def first_difference(windows: Windows, others: Windows) -> str | None:
    """The first place where the windows of two tokenizers differ, in words; None if they are the same."""
    for number, (one, other) in enumerate(zip(windows.tokens, others.tokens, strict=False)):
        for index, (token, other_token) in enumerate(zip(one, other, strict=True)):
            if token != other_token:
                return f"token {index} of window {number + 1} is {token} in the one and {other_token} in the other"
    if len(windows.tokens) != len(others.tokens):
        return f"the text has {len(windows.tokens)} windows in the one and {len(others.tokens)} in the other"
    return None


def begin_token(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts in front of a text, if it does."""
    alone, framed = (tokenizer.encode("a", add_special_tokens=framing) for framing in (False, True))
    return framed[0] if framed[: len(alone)] != alone else None
