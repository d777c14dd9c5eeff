"""What a worker process computes for an evaluation: what one model predicts for a window of tokens.

`record` writes the logits of the baseline to the temporary file; `compare` compares those of a form with them. Logits
are in memory one chunk at a time and never leave the process: the parent gets a few numbers per position.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from localq.measure.baseline_logits import LogitsFile
from localq.measure.divergence import compare_rows, negative_log_likelihoods
from localq.model import Model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Answer = dict[str, list[float]]
"""Figures of positions by name, and `engine_seconds` of every chunk: the time that the engine needed for it."""


def record(model: Model, tokens: Sequence[int], first: int, row: int, file: tuple[int, str]) -> Answer:
    """Write the logits of a window, from its position `first` on, to the file from its row `row` on.

    `file` has the fields of `LogitsFile`. Gives `negative_log_likelihood` of each position. Raises StoreError for a
    full disk, EngineError for logits that are not finite.
    """
    answer: Answer = {"negative_log_likelihood": [], "engine_seconds": []}
    for done, logits, right, seconds in _chunks(model, tokens, first):
        answer["negative_log_likelihood"] += negative_log_likelihoods(logits, right).tolist()
        answer["engine_seconds"].append(seconds)
        LogitsFile(*file).write(row + done, logits)
    return answer


def compare(model: Model, tokens: Sequence[int], first: int, row: int, file: tuple[int, str]) -> Answer:
    """Compare the logits of a window with those in the file. The arguments are those of `record`.

    Gives the fields of `localq.measure.divergence.Positions`. Raises as `record`.
    """
    answer: Answer = {"negative_log_likelihood": [], "kl_divergence": [], "same_top": [], "engine_seconds": []}
    for done, logits, right, seconds in _chunks(model, tokens, first):
        positions = compare_rows(LogitsFile(*file).read(row + done, logits.shape), logits, right)
        answer["negative_log_likelihood"] += positions.negative_log_likelihood.tolist()
        answer["kl_divergence"] += positions.kl_divergence.tolist()
        answer["same_top"] += positions.same_top.tolist()
        answer["engine_seconds"].append(seconds)
    return answer


def _chunks(
    model: Model, tokens: Sequence[int], first: int
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.intp], float]]:
    """Positions before, logits of scored positions, the token after each, and seconds that the engine needed.

    The last token is computed too, though nothing comes after it: passes have the length of llama-perplexity's, on
    which the last digits depend.
    """
    import numpy as np

    chunks = model.engine.logits_in_chunks(tokens, first)
    after = tokens[first + 1 :]
    done = 0
    while True:
        started = time.perf_counter()
        logits = next(chunks, None)
        seconds = time.perf_counter() - started
        if logits is None:
            return
        right = np.array(after[done : done + len(logits)], dtype=np.intp)
        yield done, logits[: len(right)], right, seconds
        done += len(logits)
