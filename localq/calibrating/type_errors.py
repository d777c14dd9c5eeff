"""How far each type moves each tensor: weighted squared errors, measured on a sample of its rows.

The error of a tensor is the sum over rows and columns of importance x (value in the file - value in the checkpoint)^2,
where the importance of a column is 1 if none was measured. It is known before a conversion, for every type that a
budget may choose, so that a choice takes no time later. Types are quantized as the conversion does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from localq.calibration.importance import ImportanceMatrix
from localq.calibration.types import (
    GGUF_TYPES,
    MLX_TYPES,
    NEED_IMPORTANCE,
    PLAIN,
    PLAIN_GGUF_TYPES,
    PLAIN_MLX_TYPES,
    mlx_key,
)
from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.tensors import from_float32, to_float32
from localq.conversion import ggml
from localq.conversion.mlx_search import dequantized, searched
from localq.conversion.pieces import worker_pool
from localq.conversion.quantizer import Quantizer
from localq.families.base import TensorLayout
from localq.recipes import MlxQuantization

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SAMPLE_WEIGHTS = 1 << 16
"""Weights of a tensor that are quantized; whole rows, at least `LEAST_ROWS` where it has them."""
LEAST_ROWS = 32

_GOLDEN_RATIO = 0.6180339887498949

_DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16"}

Progress = Callable[[int, int], None]
"""Called with (tensors that are done, tensors in all)."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Sampled rows of a tensor that share an importance: all of them, or those of one expert."""

    rows: NDArray[Any]
    """As `read_rows` gives them."""
    values: NDArray[np.float32]
    """The same, widened."""
    importance: NDArray[np.float32] | None
    """By column."""


def measure_type_errors(
    checkpoint: Checkpoint, importance: ImportanceMatrix | None, on_progress: Progress | None = None
) -> dict[str, dict[str, float]]:
    """Type key -> GGUF name of the tensor -> weighted squared error of the whole tensor, estimated.

    A tensor that a type does not fit is not in its entry. Raises CheckpointError for damaged weights.
    """
    layouts = [layout for layout in checkpoint.layouts if layout.is_quantizable and layout.gguf_name]
    quantizer = Quantizer(ggml.type_number(kind) for kind in GGUF_TYPES)
    measured: dict[str, dict[str, float]] = {}
    with checkpoint.weights, worker_pool() as pool:
        compute = partial(_errors_of, checkpoint, quantizer, importance)
        for done, (layout, errors) in enumerate(pool.in_order(layouts, compute), 1):
            for key, error in errors.items():
                measured.setdefault(key, {})[layout.gguf_name] = error
            if on_progress:
                on_progress(done, len(layouts))
    return measured


def sampled_rows(rows: int, columns: int) -> list[int]:
    """Rows spread over a tensor, at distances without a period: heads and rotations have one."""
    count = min(rows, max(LEAST_ROWS, SAMPLE_WEIGHTS // columns))
    return [int((number + number * _GOLDEN_RATIO % 1) * rows / count) for number in range(count)]


def _errors_of(
    checkpoint: Checkpoint, quantizer: Quantizer, importance: ImportanceMatrix | None, layout: TensorLayout
) -> dict[str, float]:
    weights = importance.weights(layout.gguf_name) if importance else None
    parts = list(_parts(checkpoint, layout, weights))
    scale = math.prod(layout.shape[:-1]) / sum(len(part.rows) for part in parts)
    errors: dict[str, float] = {}
    for part in parts:
        for key, error in {**_gguf_errors(part, quantizer), **_mlx_errors(part)}.items():
            errors[key] = errors.get(key, 0.0) + error * scale
    return errors


def _parts(checkpoint: Checkpoint, layout: TensorLayout, weights: NDArray[np.float32] | None) -> Iterator[_Part]:
    import numpy as np

    *leading, rows_of_expert, columns = layout.shape
    experts = leading[0] if leading else 1
    sample = sampled_rows(experts * rows_of_expert, columns)
    for expert in range(experts):
        numbers = [row for row in sample if row // rows_of_expert == expert]
        if numbers:
            rows = np.concatenate([checkpoint.weights.read_rows(layout.name, row, row + 1) for row in numbers])
            of_expert = None if weights is None else np.ascontiguousarray(weights[expert], dtype=np.float32)
            yield _Part(rows, to_float32(rows), of_expert)


def _error(part: _Part, values: NDArray[np.float32]) -> float:
    import numpy as np

    squares = np.square(values - part.values).sum(axis=0, dtype=np.float64)
    return float(squares.sum() if part.importance is None else squares @ part.importance.astype(np.float64))


def _gguf_errors(part: _Part, quantizer: Quantizer) -> dict[str, float]:
    columns = part.rows.shape[1]
    errors = {}

    def error(number: int, importance: NDArray[np.float32] | None) -> float:
        return _error(part, ggml.dequantize_rows(number, quantizer.quantize(number, part.rows, importance), columns))

    for kind in GGUF_TYPES:
        number = ggml.type_number(kind)
        if columns % ggml.block_weights(number) == 0 and (part.importance is not None or kind not in NEED_IMPORTANCE):
            errors[kind] = error(number, part.importance)
            if kind in PLAIN_GGUF_TYPES:
                errors[PLAIN + kind] = error(number, None)
    return errors


def _mlx_errors(part: _Part) -> dict[str, float]:
    columns, dtype = part.rows.shape[1], _DTYPES[part.rows.dtype.name]
    errors = {}
    for bits, group_size in MLX_TYPES:
        if columns % group_size == 0:
            how = MlxQuantization(bits, group_size)
            kept = dequantized(searched(part.rows, how, part.importance), how)
            errors[mlx_key(bits, group_size)] = _error(part, kept)
            if (bits, group_size) in PLAIN_MLX_TYPES:
                errors[mlx_key(bits, group_size, PLAIN)] = _error(part, affine(part.values, bits, group_size, dtype))
    return errors


def affine(rows: NDArray[np.float32], bits: int, group_size: int, dtype: str) -> NDArray[np.float32]:
    """The values that `mx.quantize` keeps of (rows, columns), with scales and biases of a `dtype` such as BF16.

    Source: `quantize` in MLX's mlx/backend/cpu/quantized.cpp.
    """
    import numpy as np

    groups = rows.reshape(len(rows), -1, group_size)
    most = np.float32((1 << bits) - 1)
    low, high = groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True)
    from_low = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / most, np.float32(1e-7)) * np.where(from_low, 1, -1).astype(np.float32)
    edge = np.where(from_low, low, high)
    steps = np.rint(edge / scale)
    has_steps = steps != 0
    scale = np.where(has_steps, edge / np.where(has_steps, steps, 1), scale)
    bias = np.where(has_steps, edge, 0).astype(np.float32)
    codes = np.clip(np.rint((groups - bias) / scale), 0, most)
    scale, bias = (to_float32(from_float32(value, dtype)) for value in (scale, bias))
    return np.asarray(codes * scale + bias, dtype=np.float32).reshape(rows.shape)
