"""The text that a model is calibrated on, as token ids: windows for the columns, and one for the tensors."""

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
_PIECES = 4
"""The window for the tensors is put together from so many places of the text."""


@dataclass(frozen=True, slots=True)
class CalibrationTokens:
    """What a model computes while it is calibrated."""

    windows: tuple[tuple[int, ...], ...]
    """For the importance of the columns."""
    tensor_window: tuple[int, ...]
    """For the sensitivity of the tensors."""
    texts: tuple[CalibrationText, ...]


def read_texts(files: Sequence[Path]) -> list[Text]:
    """The files, or localq's own text where there are none. Raises OptionError."""
    if files:
        return [read_text(file, _MOST_TOKENS_READ) for file in files]
    return [decode_text("localq/calibrating/text.txt", DEFAULT_TEXT.read_bytes(), _MOST_TOKENS_READ)]


def cut(texts: Sequence[Text], tokenizer: Tokenizer, size: int, counts: tuple[int, int]) -> CalibrationTokens:
    """Windows of `size` tokens, at even distances in the texts, and a window of pieces from even distances.

    `counts`: tokens of all windows together and of the other window, at most. As in llama-imatrix, each window begins
    with the tokenizer's begin-of-text token, if it has one. Raises OptionError for texts that are too short.
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
    there = len(tokens) // size
    wanted = min(there, max(1, counts[0] // size))
    starts = [number * there // wanted * size for number in range(wanted)]
    windows = [_begun(tokens[start : start + size], first) for start in starts]
    computed = _computed(lengths, starts, size)
    records = [CalibrationText(text.name, text.sha256, count) for text, count in zip(texts, computed, strict=True)]
    return CalibrationTokens(
        tuple(windows), _begun(_pieces(tokens, min(size, counts[1])), first), tuple(records)
    )


def _begun(tokens: Sequence[int], first: int | None) -> tuple[int, ...]:
    return tuple(tokens) if first is None else (first, *tokens[1:])


def _pieces(tokens: Sequence[int], count: int) -> list[int]:
    length = -(-count // _PIECES)
    starts = [number * (len(tokens) - length) // max(1, _PIECES - 1) for number in range(_PIECES)]
    return [token for start in starts for token in tokens[start : start + length]][:count]


def _computed(lengths: Sequence[int], starts: Sequence[int], size: int) -> list[int]:
    """How many tokens of each text are in the windows."""
    counts, first = [], 0
    for length in lengths:
        overlaps = (min(start + size, first + length) - max(start, first) for start in starts)
        counts.append(sum(max(0, overlap) for overlap in overlaps))
        first += length
    return counts
