"""The text that a model is calibrated on, as token ids: windows for the columns, and shorter ones for the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localq.calibration.calibration import CalibrationText
from localq.errors import OptionError
from localq.measure.windows import Text, begin_token, decode_text, read_text
from localq.text.tokenizer import Tokenizer

DEFAULT_TEXT = Path(__file__).parent / "text.txt"

_MOST_TOKENS_READ = 1 << 16
"""Of each file, at most so many times 64 bytes are read."""
TENSOR_WINDOW_TOKENS = 256
"""Of running text. Windows put together from shorter pieces measured worse: each break costs many surprises."""


@dataclass(frozen=True, slots=True)
class CalibrationTokens:
    """What a model computes while it is calibrated."""

    windows: tuple[tuple[int, ...], ...]
    """For the importance of the columns."""
    tensor_windows: tuple[tuple[int, ...], ...]
    """For the sensitivity of the tensors."""
    texts: tuple[CalibrationText, ...]


def read_texts(files: Sequence[Path]) -> list[Text]:
    """The files, or localq's own text where there are none. Raises OptionError."""
    if files:
        return [read_text(file, _MOST_TOKENS_READ) for file in files]
    return [decode_text("localq/calibrating/text.txt", DEFAULT_TEXT.read_bytes(), _MOST_TOKENS_READ)]


def cut(texts: Sequence[Text], tokenizer: Tokenizer, size: int, counts: tuple[int, int]) -> CalibrationTokens:
    """Windows of `size` tokens for the columns and of `TENSOR_WINDOW_TOKENS` for the tensors, both of them at most.

    They lie at even distances in the texts. `counts`: tokens for the columns and for the tensors, at most. As in
    llama-imatrix, each window begins with the tokenizer's begin-of-text token, if it has one. Raises OptionError for
    texts that are too short.
    """
    tokens: list[int] = []
    lengths = []
    for text in texts:
        own = tokenizer.encode(text.content.removesuffix("\n"), add_special_tokens=True)
        tokens += own
        lengths.append(len(own))
    if len(tokens) < size:
        raise OptionError(
            f"{' and '.join(text.name for text in texts)}: {len(tokens):,} tokens; at least {size:,} are needed",
            "give a longer text with --text, or several",
        )
    first = begin_token(tokenizer)
    starts = _starts(len(tokens), size, counts[0])
    small = min(size, TENSOR_WINDOW_TOKENS, counts[1])
    # From the middle of its share: the beginning of a text is not like the rest.
    small_starts = [start + size // 2 for start in _starts(len(tokens) - size // 2, small, counts[1])]
    computed = _computed(lengths, starts, size)
    return CalibrationTokens(
        tuple(_begun(tokens[start : start + size], first) for start in starts),
        tuple(_begun(tokens[start : start + small], first) for start in small_starts),
        tuple(CalibrationText(text.name, text.sha256, count) for text, count in zip(texts, computed, strict=True)),
    )


def _starts(tokens: int, size: int, most_tokens: int) -> list[int]:
    """First tokens of windows that don't overlap, at even distances."""
    there = tokens // size
    wanted = min(there, max(1, most_tokens // size))
    return [number * there // wanted * size for number in range(wanted)]


def _begun(tokens: Sequence[int], first: int | None) -> tuple[int, ...]:
    return tuple(tokens) if first is None else (first, *tokens[1:])


def _computed(lengths: Sequence[int], starts: Sequence[int], size: int) -> list[int]:
    """How many tokens of each text are in the windows."""
    counts, first = [], 0
    for length in lengths:
        overlaps = (min(start + size, first + length) - max(start, first) for start in starts)
        counts.append(sum(max(0, overlap) for overlap in overlaps))
        first += length
    return counts
