"""The process that computes what one form foretells: `python -m localq.measure.quality.worker`.

It records the reference's rows in the file that it is given, or compares with what stands there. Either way a window's
logits live in pieces, and no longer than a piece takes; what goes back to the parent is a few numbers a position.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.disk import disk_errors
from localq.generation import TextRules, stream
from localq.hardware import peak_memory_bytes
from localq.measure.quality.divergence import Positions, compare_rows, joined, negative_log_likelihoods
from localq.measure.quality.reference_logits import ReferenceFile, pack_rows
from localq.measure.serving import serve
from localq.model import Model, open_form, open_gguf_file
from localq.options import GenerationOptions, LoadOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POSITION_FIELDS = tuple(field.name for field in fields(Positions))
"""What comes back of each position of a window that was compared."""


class QualityWorker:
    """Answers requests: first `load`, then `record` or `compare` window by window, `generate` and `peak_memory`."""

    def __init__(self) -> None:
        self._model: Model | None = None
        self._file: ReferenceFile | None = None
        self._folder = Path()
        self._engine_seconds = 0.0

    @property
    def commands(self) -> dict[str, Callable[..., dict[str, Any]]]:
        """By name."""
        return {
            "load": self.load,
            "record": self.record,
            "compare": self.compare,
            "generate": self.generate,
            "peak_memory": lambda: {"peak_memory_bytes": peak_memory_bytes()},
        }

    def load(self, path: str, context_length: int, threads: int | None, descriptor: int, folder: str) -> dict[str, Any]:
        """Open a form; the reference's rows are in the open file `descriptor`, on the disk of `folder`."""
        form, options = Path(path), LoadOptions(context_length, threads)
        self._model = open_gguf_file(form, options) if form.is_file() else open_form(form, options)
        vocabulary_size = self._model.engine.vocabulary_size
        self._file, self._folder = ReferenceFile(descriptor, vocabulary_size), Path(folder)
        return {"load_seconds": self._model.load_seconds, "vocabulary_size": vocabulary_size}

    def record(self, tokens: Sequence[int], first: int, row: int) -> dict[str, Any]:
        """Write what is foretold of a window, from its position `first` on, to the file's rows from `row` on.

        Gives `negative_log_likelihood` of each position, and how long the engine took.
        """
        parts: list[float] = []
        for index, logits in self._rows(tokens, first):
            packed = pack_rows(logits)
            with disk_errors(self._folder):
                self._reference.write(row + index, packed)
            parts += negative_log_likelihoods(packed, logits, _right(tokens, first + index, len(logits))).tolist()
        return {"negative_log_likelihood": parts, "engine_seconds": self._engine_seconds}

    def compare(self, tokens: Sequence[int], first: int, row: int) -> dict[str, Any]:
        """Compare what is foretold with the file's rows. Gives `POSITION_FIELDS`, and how long the engine took."""
        parts = []
        for index, logits in self._rows(tokens, first):
            with disk_errors(self._folder):
                rows = self._reference.read(row + index, len(logits))
            parts.append(compare_rows(rows, logits, _right(tokens, first + index, len(logits))))
        positions = joined(parts)
        values = {name: getattr(positions, name).tolist() for name in POSITION_FIELDS}
        return {**values, "engine_seconds": self._engine_seconds}

    def generate(self, tokens: Sequence[int], generated_tokens: int) -> dict[str, Any]:
        """Continue some tokens greedily, whatever comes; None where one token alone fits in the context."""
        assert self._model is not None, "load comes first"
        options = GenerationOptions(max_tokens=generated_tokens)
        *_, last = stream(self._model.engine, TextRules(self._model.tokenizer), list(tokens), options)
        assert last.statistics is not None  # the last chunk has them
        return {"generated_tokens_per_second": last.statistics.generated_tokens_per_second}

    @property
    def _reference(self) -> ReferenceFile:
        assert self._file is not None, "load comes first"
        return self._file

    def _rows(self, tokens: Sequence[int], first: int) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Logits of the positions that foretell a token of the window, in pieces with the number of rows before.

        The last token is computed too, for passes like llama-perplexity's: their length matters in the last digits.
        """
        assert self._model is not None, "load comes first"
        self._engine_seconds = 0.0
        chunks = self._model.engine.logits_in_chunks(tokens, first)
        done, scored = 0, len(tokens) - first - 1
        while True:
            started = time.perf_counter()
            logits = next(chunks, None)
            self._engine_seconds += time.perf_counter() - started
            if logits is None:
                return
            if done < scored:
                yield done, logits[: scored - done]
            done += len(logits)


def _right(tokens: Sequence[int], first: int, count: int) -> NDArray[np.intp]:
    """The tokens that come after `count` positions from `first` on."""
    import numpy as np

    return np.array(tokens[first + 1 : first + 1 + count], dtype=np.intp)


def main() -> None:
    """Answer until the input ends."""
    serve(QualityWorker().commands)


if __name__ == "__main__":
    main()
