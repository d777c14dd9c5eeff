"""What a reference model foretells, in a compact file: a row for each position, which forms are compared with.

A row of logits takes 2 bytes a token and 8 kB, half of what it takes in float32, and loses nothing that a
Kullback-Leibler divergence would show:

- the natural logarithm of the sum of all exponentials, so that probabilities are normalised exactly;
- the 1,024 largest logits as they are: most of the probability;
- the other ones, the tail, as 16-bit codes, in equal steps between the smallest and the largest of them, and the
  tail's probability in all, by which the decoded ones are put right: what rounding moves within the tail is lost.

So rounding errors count only with a tail token's probability, less than 1 / 1,024, and with how far the other model's
log-probability is off: they change a divergence by about a ten-millionth at most, or some millionths of it where it is
large. llama-perplexity rounds all logits so, from the largest one down to 16 below. Knows neither models nor
statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from localq.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MOST_EXACT_TOKENS = 1024
"""Largest logits of a row that are kept as they are."""

_LARGEST_CODE = 65535
_WIDEST_TAIL = 30.0
"""Logits further below the tail's largest are raised to that: their probabilities are 1e-13 of its."""
_NARROWEST_TAIL = 1e-20
"""In place of the width of a tail whose logits are all the same."""
_SMALLEST = 1e-300
"""In place of the probability of a tail that is too small for a float64."""
_BLOCK_NUMBERS = 1 << 18
"""Numbers that are worked on at once: a megabyte stays in a processor's cache."""


def row_type(vocabulary_size: int) -> np.dtype[np.void]:
    """How a row lies in the file."""
    import numpy as np

    exact = min(MOST_EXACT_TOKENS, vocabulary_size)
    return np.dtype(
        [
            ("log_sum_exp", "<f8"),
            ("log_tail_probability", "<f8"),
            ("tail_width", "<f4"),
            ("likeliest", "<u4"),
            ("ids", "<u4", (exact,)),  # ascending
            ("logits", "<f4", (exact,)),
            ("codes", "<u2", (vocabulary_size if exact < vocabulary_size else 0,)),
        ]
    )


def blocks(row_count: int, vocabulary_size: int) -> list[slice]:
    """Rows that are best worked on at once, in order."""
    rows = max(1, _BLOCK_NUMBERS // vocabulary_size)
    return [slice(first, first + rows) for first in range(0, row_count, rows)]


def pack_rows(logits: NDArray[np.float32]) -> NDArray[np.void]:
    """Logits, shape (rows, vocabulary size), as `row_type`. Raises EngineError for logits that are no numbers."""
    import numpy as np

    packed = np.zeros(len(logits), dtype=row_type(logits.shape[1]))
    for block in blocks(*logits.shape):
        _pack(logits[block], packed[block])
    require_finite(packed["log_sum_exp"])
    return packed


def require_finite(values: NDArray[np.floating]) -> None:
    """Raise EngineError unless what was computed from logits are numbers."""
    import numpy as np

    if not np.isfinite(values).all():
        raise EngineError(
            "its logits are not all finite: a number became too large for the precision that it computes in",
            "take a form in another precision, bf16 or f32 instead of f16",
        )


def _pack(logits: NDArray[np.float32], rows: NDArray[np.void]) -> None:
    import numpy as np

    exact = rows["ids"].shape[1]
    rows["likeliest"] = logits.argmax(axis=1)
    largest = logits.max(axis=1, keepdims=True)
    rows["ids"] = ids = np.sort(np.argpartition(logits, -exact, axis=1)[:, -exact:], axis=1)
    rows["logits"] = kept = np.take_along_axis(logits, ids, axis=1)
    kept_sum = np.exp(kept.astype(np.float64) - largest).sum(axis=1)
    tail_sum = np.zeros_like(kept_sum)
    if rows["codes"].shape[1]:
        shifted = logits - largest
        powers = np.exp(shifted)
        np.put_along_axis(powers, ids, 0, axis=1)
        tail_sum = powers.sum(axis=1, dtype=np.float64)
        rows["tail_width"], rows["codes"] = _codes(shifted, kept.min(axis=1, keepdims=True) - largest)
    whole = kept_sum + tail_sum
    rows["log_sum_exp"] = largest[:, 0] + np.log(whole)
    rows["log_tail_probability"] = np.log(np.maximum(tail_sum / whole, _SMALLEST))


def _codes(shifted: NDArray[np.float32], high: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Width of each row's tail, from its smallest logit to `high`, and the place of each logit in it; spoils `shifted`.

    The codes of what is kept exactly mean nothing.
    """
    import numpy as np

    low = np.maximum(shifted.min(axis=1, keepdims=True), high - np.float32(_WIDEST_TAIL))
    width = high - low
    shifted -= low
    shifted *= _LARGEST_CODE / np.maximum(width, np.float32(_NARROWEST_TAIL))
    return width[:, 0], np.clip(np.rint(shifted, out=shifted), 0, _LARGEST_CODE, out=shifted)


@dataclass(frozen=True, slots=True)
class Tail:
    """The tails of some rows, decoded."""

    heights: NDArray[np.float32]
    """Logits above the row's smallest one; shape (rows, vocabulary size)."""
    powers: NDArray[np.float32]
    """Proportional to the probabilities; 0 for what is kept exactly. They stay unnormalised: a quotient in float32
    would put the same error on all of them."""
    powers_sum: NDArray[np.float64]
    log_base: NDArray[np.float64]
    """A token's log-probability is its height and this."""
    probability: NDArray[np.float64]
    """Of the whole tail."""


def decode_tail(rows: NDArray[np.void]) -> Tail:
    """The tails of rows that have one."""
    import numpy as np

    width = rows["tail_width"]
    heights = np.multiply(rows["codes"], (width / np.float32(_LARGEST_CODE))[:, None], dtype=np.float32)
    powers = np.exp(heights - width[:, None])
    np.put_along_axis(powers, rows["ids"].astype(np.intp), 0, axis=1)
    powers_sum = powers.sum(axis=1, dtype=np.float64)
    log_probability = rows["log_tail_probability"]
    log_base = log_probability - np.log(powers_sum) - width
    return Tail(heights, powers, powers_sum, log_base, np.exp(log_probability))


class ReferenceFile:
    """Rows in a file that is open in this process; two of them, in two processes, may share it by turns."""

    def __init__(self, descriptor: int, vocabulary_size: int) -> None:
        """`descriptor` is that of the file, and stays open."""
        self._descriptor = descriptor
        self._type = row_type(vocabulary_size)

    def write(self, first_row: int, rows: NDArray[np.void]) -> None:
        """Put rows in their place. Raises OSError."""
        with open(self._descriptor, "r+b", closefd=False) as stream:
            stream.seek(first_row * self._type.itemsize)
            stream.write(rows.view("u1").data)

    def read(self, first_row: int, count: int) -> NDArray[np.void]:
        """Rows that were written. Raises OSError."""
        import numpy as np

        rows = np.empty(count, dtype=self._type)
        with open(self._descriptor, "rb", closefd=False) as stream:
            stream.seek(first_row * self._type.itemsize)
            stream.readinto(rows.view("u1").data)
        return rows
