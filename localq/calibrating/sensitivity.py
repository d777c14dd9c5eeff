"""The sensitivity of tensors: how far the model's predictions move when only one tensor is coarse.

No model is made for it. A coarse weight W + D changes only the output of its own product, by x times the transposed D:
that is added to it while llama.cpp computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from localq.calibrating.type_errors import affine
from localq.calibration.importance import ImportanceMatrix
from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.tensors import to_float32
from localq.conversion.gguf import rows_in_gguf_order
from localq.conversion.pieces import WorkerPool
from localq.engines.llamacpp_observer import EXPERTS, LOOKUP, ObservedEngine, Product
from localq.errors import EngineError
from localq.families.base import TensorLayout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COARSE_BITS, COARSE_GROUP_SIZES = 3, (64, 32, 16)
"""Coarse is what `mx.quantize` makes of these bits, in the largest groups that the columns can be divided into."""

_PIECE_WEIGHTS = 1 << 18
_LARGEST_EXPONENT = 80  # whose exponential is float32


def coarse_change(rows: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """Coarse values - values, of rows; `dtype` is that of the checkpoint's tensor."""
    columns = rows.shape[1]
    group_size = next((size for size in COARSE_GROUP_SIZES if columns % size == 0), columns)
    return affine(rows, COARSE_BITS, group_size, dtype) - rows


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of a tensor, all of one expert; counted over all experts."""

    expert: int
    start: int
    stop: int


class CoarseTensor:
    """Makes one tensor coarse in a pass, and adds up the weighted squared error of that. An `Observer`."""

    def __init__(
        self, checkpoint: Checkpoint, layout: TensorLayout, importance: ImportanceMatrix, pool: WorkerPool
    ) -> None:
        """`checkpoint.weights` must be open."""
        self._checkpoint = checkpoint
        self._layout = layout
        self._importance = importance.weights(layout.gguf_name)
        self._pool = pool
        self._error: float | None = None

    def wants(self, operation: str, weight: str) -> bool:
        """See `Observer`. A tied embedding is looked up and multiplied with."""
        return weight == self._layout.gguf_name

    def see(self, product: Product) -> bool:
        """See `Observer`."""
        import numpy as np

        if product.operation == LOOKUP:
            wanted, places = np.unique(product.looked_up(), return_inverse=True)
            rows = [self._change(_Piece(0, row, row + 1)) for row in wanted.tolist()]
            product.add(np.concatenate(rows)[places.reshape(-1)])
            return True
        inputs = product.inputs()
        experts = product.experts() if product.operation == EXPERTS else np.zeros(inputs.shape[:2], np.int32)
        product.add(self._output_change(inputs, experts))
        return True

    def squared_error(self) -> float:
        """Of all rows: the sum of importance x change^2, where the importance is 1 if none was measured."""
        if self._error is None:
            found = self._pool.in_order(self._pieces(), lambda piece: self._error_of(piece, self._change(piece)))
            self._error = math.fsum(error for _, error in found)
        return self._error

    def _output_change(self, inputs: NDArray[np.float32], experts: NDArray[np.int32]) -> NDArray[np.float32]:
        import numpy as np

        *_, rows, columns = self._layout.shape
        result = np.zeros((*experts.shape, rows), np.float32)
        chosen = {expert: np.nonzero(experts == expert) for expert in np.unique(experts).tolist()}
        taken = {expert: inputs[at[0], at[1] % inputs.shape[1]] for expert, at in chosen.items()}

        def compute(piece: _Piece) -> float:
            change = self._change(piece)
            if piece.expert in taken:
                first = piece.start - piece.expert * rows
                at = chosen[piece.expert]
                result[at[0], at[1], first : first + len(change)] = taken[piece.expert] @ change.T
            return self._error_of(piece, change)

        self._error = math.fsum(error for _, error in self._pool.in_order(self._pieces(), compute))
        return result

    def _pieces(self) -> Iterator[_Piece]:
        *leading, rows, columns = self._layout.shape
        heads = self._layout.rope_head_count
        head_rows = rows // heads if heads else 1
        step = max(1, _PIECE_WEIGHTS // (columns * head_rows)) * head_rows
        for expert in range(math.prod(leading)):
            for start in range(0, rows, step):
                yield _Piece(expert, expert * rows + start, expert * rows + min(start + step, rows))

    def _change(self, piece: _Piece) -> NDArray[np.float32]:
        values = to_float32(rows_in_gguf_order(self._checkpoint, self._layout, piece.start, piece.stop))
        return coarse_change(values, self._checkpoint.tensor(self._layout).dtype)

    def _error_of(self, piece: _Piece, change: NDArray[np.float32]) -> float:
        import numpy as np

        by_column = np.square(change).sum(axis=0, dtype=np.float64)
        return float(by_column.sum() if self._importance is None else by_column @ self._importance[piece.expert])


class Predictions:
    """What the unchanged model predicts for a window: what changed models are compared with."""

    def __init__(self, engine: ObservedEngine, tokens: Sequence[int]) -> None:
        """Compute them: 4 bytes for each token of the vocabulary and of the window."""
        import numpy as np

        self._engine = engine
        self._tokens = tokens
        self._logits = np.empty((len(tokens), engine.vocabulary_size), np.float32)
        done = 0
        for rows in engine.logits_in_chunks(tokens):
            self._logits[done : done + len(rows)] = rows
            done += len(rows)

    def divergence(self, coarse: CoarseTensor) -> float:
        """Mean KL divergence in nats of the model with a coarse tensor from the unchanged one.

        Raises EngineError for logits that are not finite.
        """
        divergences: list[float] = []
        with self._engine.observed(coarse):
            for rows in self._engine.logits_in_chunks(self._tokens):
                before = self._logits[len(divergences) :]
                divergences += [kl_divergence(one, other) for one, other in zip(before, rows, strict=False)]
        mean = math.fsum(divergences) / len(divergences)
        if not math.isfinite(mean):
            raise EngineError("the model's logits are not all finite", "the weights are damaged: download them again")
        return max(0.0, mean)


def kl_divergence(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """The sum of P (ln P - ln Q), P and Q the softmax of two rows of logits: in float32, for speed.

    With the logits' differences d and their mean m under P it is ln of the mean of exp(d - m) under P. No large numbers
    are subtracted, so that the result is right to about 1e-7.
    """
    import numpy as np

    weights = np.exp(before - before.max())
    total = float(weights.sum(dtype=np.float64))
    change = after - before
    change -= np.float32(np.dot(weights, change) / total)
    left = float(np.dot(weights, change)) / total  # what rounding left of the mean
    np.minimum(change, _LARGEST_EXPONENT, out=change)
    growth = np.exp(change, out=change)
    growth -= 1
    return math.log1p(float(np.dot(weights, growth)) / total) - left
