"""One GGUF file in one pass: header, then every tensor from the checkpoint's rows to quantized bytes.

There is no intermediate file, and memory does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.tensors import row_ranges
from localq.conversion.output import HashedOutput, WrittenFile
from localq.conversion.pieces import Piece
from localq.conversion.plan_gguf import GGUF_ALIGNMENT_BYTES, GgufMetadata, GgufPlan, GgufTensor
from localq.conversion.quantizer import Quantizer
from localq.families.base import TensorLayout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `start` to `stop` of a tensor."""

    tensor: GgufTensor
    start: int
    stop: int
    importance: NDArray[np.float32] | None = None
    """Of the whole tensor, shape (experts, columns)."""


class GgufFile:
    """A GGUF file being written; `checkpoint.weights` must be open. A context manager."""

    def __init__(self, checkpoint: Checkpoint, plan: GgufPlan, metadata: Future[GgufMetadata], file: Path) -> None:
        self._checkpoint = checkpoint
        self._metadata = metadata
        self._plan = plan
        self._output = HashedOutput(file)
        self.quantizer = Quantizer({tensor.type_number for tensor in plan.tensors})

    def pieces(self) -> Iterator[Piece]:
        """The whole file, in file order."""
        yield Piece(0, self._header, self._output.write)
        for tensor in self._plan.tensors:
            layout = tensor.layout
            # Whole heads in a piece, where rows are reordered within heads.
            importance = self._plan.importance.of(tensor.name, tensor.shape) if self._plan.importance else None
            multiple = tensor.rows // layout.rope_head_count if layout and layout.rope_head_count else 1
            for start, stop in row_ranges(tensor.rows, tensor.columns, max(1, multiple)):
                rows = Rows(tensor, start, stop, importance)
                yield Piece(self._source_bytes(rows), partial(self.encoded, rows), partial(self._write, rows))

    def encoded(self, rows: Rows) -> NDArray[np.uint8]:
        """The bytes of a range of rows, shape (rows, bytes per row); called in several threads."""
        import numpy as np

        tensor, importance = rows.tensor, rows.importance
        values = self._values(rows).reshape(-1, tensor.columns)
        if importance is None:
            return self.quantizer.quantize(tensor.type_number, values)
        parts = []
        start, rows_per_expert = rows.start, tensor.rows // tensor.experts
        while start < rows.stop:  # each expert has importances of its own
            expert = start // rows_per_expert
            stop = min(rows.stop, (expert + 1) * rows_per_expert)
            part = values[start - rows.start : stop - rows.start]
            parts.append(self.quantizer.quantize(tensor.type_number, part, importance[expert]))
            start = stop
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @property
    def written(self) -> list[WrittenFile]:
        """The file, after the `with` block."""
        return [self._output.written]

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._output.__exit__(kind, error, trace)

    def _header(self) -> bytes:
        return self._plan.header(self._metadata.result())

    def _write(self, rows: Rows, data: NDArray[np.uint8]) -> None:
        self._output.write(data.reshape(-1).data)
        if rows.stop == rows.tensor.rows:
            self._output.write(bytes(-self._output.position % GGUF_ALIGNMENT_BYTES))

    def _values(self, rows: Rows) -> NDArray[Any]:
        tensor = rows.tensor
        if tensor.layout is None:
            assert tensor.values is not None
            return tensor.values
        start, stop = (rows.start, rows.stop) if len(tensor.shape) > 1 else (0, tensor.columns)
        return rows_in_gguf_order(self._checkpoint, tensor.layout, start, stop)

    def _source_bytes(self, rows: Rows) -> int:
        if rows.tensor.layout is None:
            return 0
        nbytes = self._checkpoint.tensor(rows.tensor.layout).nbytes
        total = rows.tensor.rows
        return nbytes * rows.stop // total - nbytes * rows.start // total  # adds up to `nbytes`


def rows_in_gguf_order(checkpoint: Checkpoint, layout: TensorLayout, start: int, stop: int) -> NDArray[Any]:
    """As `Weights.read_rows`, in the order that rows have in a GGUF file; of whole heads where they are reordered."""
    values = checkpoint.weights.read_rows(layout.name, start, stop)
    if layout.rope_head_count is None:
        return values
    return _neighbours_rotated(values, layout.shape[0] // layout.rope_head_count)


def _neighbours_rotated(values: NDArray[Any], head_dim: int) -> NDArray[Any]:
    """Rows of each head from [first half, second half] to [first of each half, second of each half, ...]."""
    halves = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
