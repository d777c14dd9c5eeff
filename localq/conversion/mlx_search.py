"""Quantizes rows as MLX's affine quantization stores them, with a scale and a bias for each group that are searched.

`mx.quantize` takes scale and bias from a group's smallest and largest weight. Here they are those, of a dozen tried,
that give the group the least sum of `importance * sqrt(mean of squares + w^2) * (w' - w)^2`: the weights of the errors
that ggml takes with an importance matrix (`weight` in ggml-quants.c; the mean is over the group here). MLX's own choice
is among those tried. mlx_search.c tells how they are tried, and does the work where it was compiled; the same steps
in numpy give the same bits, ten to thirty times as slowly.

MLX loads the result as its own: the codes of a row are one stream of bits, from the lowest bit of a little-endian word
on.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from localq.checkpoint.tensors import from_float32, to_float32
from localq.conversion.compiled import Compiled, widest_library
from localq.recipes import MlxQuantization

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DTYPES = {"float32": "F32", "float16": "F16", "uint16": "BF16"}
"""Safetensors' dtypes by those of `read_rows`, in the order of the enum of mlx_search.c."""

_ENDS = (0.0, 0.4, 0.8)
"""Steps by which each end of the range is narrowed."""
_TURNS = 2
_SMALLEST_SCALE = 1e-7
_LARGEST = 3.4028234e38
_FALLBACK_WEIGHTS = 1 << 16
"""In one piece of numpy's: larger ones do not fit the processor's cache."""


@dataclass(frozen=True, slots=True)
class Searched:
    """Rows as MLX stores them."""

    weight: NDArray[np.uint32]
    """Packed codes, shape (rows, columns * bits / 32)."""
    scales: NDArray[Any]
    """Shape (rows, columns / group size), of the dtype of the rows; uint16 holds the bits of bfloat16."""
    biases: NDArray[Any]
    """As `scales`."""


def searched(rows: NDArray[Any], how: MlxQuantization, importance: NDArray[np.float32] | None = None) -> Searched:
    """Quantizes finite (rows, columns) as `read_rows` gives them; columns are a multiple of the group size.

    `importance` has a factor for each column, 0 or more; None counts all columns alike. Releases Python's lock.
    """
    import numpy as np

    columns = rows.shape[1]
    factors = np.ones(columns, np.float32) if importance is None else importance
    factors = np.ascontiguousarray(np.clip(np.nan_to_num(factors, nan=0.0), 0, _LARGEST), np.float32)
    rows = np.ascontiguousarray(rows)
    compiled = _compiled()
    if compiled is not None:
        return by_library(compiled, rows, how, factors)
    step = max(1, _FALLBACK_WEIGHTS // columns)
    return _joined([by_numpy(rows[start : start + step], how, factors) for start in range(0, len(rows), step)])


def searched_piece(
    rows: NDArray[Any],
    first_row: int,
    shape: tuple[int, ...],
    how: MlxQuantization,
    importance: NDArray[np.float32] | None,
) -> Searched:
    """As `searched`, for rows of a tensor of that shape from `first_row` on.

    `importance` is that of the whole tensor, with a row for each expert, or None.
    """
    if importance is None:
        return searched(rows, how)
    of_experts = importance.reshape(-1, shape[-1])
    size = math.prod(shape[:-1]) // len(of_experts)
    pieces = []
    for expert in range(first_row // size, -(-(first_row + len(rows)) // size)):
        start = max(0, expert * size - first_row)
        pieces.append(searched(rows[start : (expert + 1) * size - first_row], how, of_experts[expert]))
    return _joined(pieces)


def _joined(pieces: list[Searched]) -> Searched:
    import numpy as np

    parts = ([getattr(piece, part) for piece in pieces] for part in ("weight", "scales", "biases"))
    return Searched(*(np.concatenate(part) for part in parts)) if len(pieces) > 1 else pieces[0]


def dequantized(quantized: Searched, how: MlxQuantization) -> NDArray[np.float32]:
    """The weights that MLX computes with, `scale * code + bias` in float32, shape (rows, columns)."""
    import numpy as np

    rows, words = quantized.weight.shape
    stream = np.unpackbits(quantized.weight.view(np.uint8), axis=1, bitorder="little")
    bits = stream.reshape(rows, words * 32 // how.bits, how.bits)
    codes = np.packbits(bits, axis=2, bitorder="little").astype(np.float32).reshape(*quantized.scales.shape, -1)
    scales, biases = (to_float32(part)[..., None] for part in (quantized.scales, quantized.biases))
    values: NDArray[np.float32] = (scales * codes + biases).reshape(rows, -1)
    return values


@cache
def _compiled() -> Compiled | None:
    return widest_library("_mlx_search")


def describe_search() -> str:
    """Who searches scales and biases for MLX here, for people."""
    compiled = _compiled()
    if compiled is None:
        return "numpy, for calibrated formats: slow, as the faster search was not compiled"
    return f"compiled ({compiled.name}), for calibrated formats"


def by_library(
    compiled: Compiled, rows: NDArray[Any], how: MlxQuantization, importance: NDArray[np.float32]
) -> Searched:
    """As `searched`, by a compiled mlx_search.c."""
    result = _empty(rows, how)
    count, columns = rows.shape
    compiled.library.localq_search(
        list(_DTYPES).index(rows.dtype.name),
        how.bits,
        how.group_size,
        _address(rows),
        ctypes.c_int64(count),
        ctypes.c_int64(columns),
        *(_address(array) for array in (importance, result.weight, result.scales, result.biases)),
    )
    return result


def _address(array: NDArray[Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _empty(rows: NDArray[Any], how: MlxQuantization) -> Searched:
    import numpy as np

    count, columns = rows.shape
    shape = count, columns // how.group_size
    packed = np.empty((count, columns * how.bits // 32), np.uint32)
    return Searched(packed, np.empty(shape, rows.dtype), np.empty(shape, rows.dtype))


@dataclass(frozen=True, slots=True)
class _Groups:
    """Groups side by side: every array of shape (group size, groups) or (groups,); see `Group` in mlx_search.c."""

    x: NDArray[np.float32]
    w: NDArray[np.float32]
    sum_w: NDArray[np.float32]
    unit: NDArray[np.float32]
    top: float
    dtype: str

    def stored(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The nearest values that can be stored; NaN where there is none."""
        import numpy as np

        result = to_float32(from_float32(values * self.unit, self.dtype)) * (np.float32(1) / self.unit)
        return np.where(np.isfinite(result), result, np.float32(np.nan))

    def codes(self, exact: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        return np.rint(np.clip(exact, 0, self.top))


@dataclass(frozen=True, slots=True)
class _Fit:
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]
    error: Any = 0.0

    def exact(self, groups: _Groups) -> NDArray[np.float32]:
        """What the codes would be if they were no integers and had no limits."""
        import numpy as np

        return (groups.x - self.bias) * (np.float32(1) / self.scale)


def by_numpy(rows: NDArray[Any], how: MlxQuantization, importance: NDArray[np.float32]) -> Searched:
    """As `searched`, without compiled code and with the same bits."""
    import numpy as np

    with np.errstate(all="ignore"):
        groups = _groups(rows, how, importance)
        fit = _search(groups)
        inverse = np.where(fit.scale != 0, np.float32(1) / fit.scale, np.float32(0))
        codes = groups.codes((groups.x - fit.bias) * inverse).T.astype(np.uint8).reshape(*rows.shape, 1)
        bits = np.unpackbits(codes, axis=2, count=how.bits, bitorder="little").reshape(len(rows), -1)
        parts = [from_float32(part * groups.unit, groups.dtype) for part in (fit.scale, fit.bias)]
    packed = np.packbits(bits, axis=1, bitorder="little").view(np.uint32)
    scales, biases = (part.reshape(len(rows), -1) for part in parts)
    return Searched(packed, scales, biases)


def _groups(rows: NDArray[Any], how: MlxQuantization, importance: NDArray[np.float32]) -> _Groups:
    import numpy as np

    x, unit = _normalized(to_float32(rows).reshape(-1, how.group_size).T)
    w, _ = _normalized(importance.reshape(-1, how.group_size).T)
    squares = x * x
    mean = np.add.reduce(squares, axis=0) / np.float32(how.group_size)
    w = np.tile(w, (1, len(rows))) * np.sqrt(mean + squares)
    return _Groups(x, w, np.add.reduce(w, axis=0), unit, float((1 << how.bits) - 1), _DTYPES[rows.dtype.name])


def _normalized(x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Divided by a power of two, so that the largest magnitude of each group is near 1, and that power."""
    import numpy as np

    most = np.ascontiguousarray(np.abs(x).max(axis=0))
    unit = (most.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32)
    unit = np.clip(unit, np.float32(2.0**-126), np.float32(2.0**126))
    return np.ascontiguousarray(x) * (np.float32(1) / unit) + np.float32(0), unit


def _search(g: _Groups) -> _Fit:
    import numpy as np

    low, high = g.x.min(axis=0), g.x.max(axis=0)
    best = _Fit(np.zeros_like(low), g.stored(low), np.full_like(low, np.inf))
    best = _better(g, _choice_of_mlx(g, low, high), best)
    step = (high - low) / g.top
    below = np.abs(low) > np.abs(high)  # the bias is the smaller end, which is rounded less
    for lower in _ENDS:
        for upper in _ENDS:
            start, end = low + lower * step, high - upper * step
            scale = (end - start) / g.top
            fit = _Fit(np.where(below, -scale, scale), np.where(below, end, start))
            best = _better(g, _least_squares(g, fit), best)
    for _ in range(_TURNS):
        best = _better(g, _least_squares(g, best), best)
    return best


def _choice_of_mlx(g: _Groups, low: NDArray[np.float32], high: NDArray[np.float32]) -> _Fit:
    """What mx.quantize chooses: the end of larger magnitude is met exactly, and so is zero."""
    import numpy as np

    below = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / g.top, np.float32(_SMALLEST_SCALE) * (np.float32(1) / g.unit))
    edge, scale = np.where(below, low, high), np.where(below, scale, -scale)
    code = edge / scale
    code = np.where(np.abs(code) < 2**22, np.rint(code), code)
    scale = np.where(code != 0, edge / code, scale)
    return _Fit(g.stored(scale), g.stored(np.where(code != 0, edge, np.float32(0))))


def _least_squares(g: _Groups, fit: _Fit) -> _Fit:
    """Weighted, for the codes of `fit`: the stored scale, then the bias that is best with it."""
    import numpy as np

    exact = fit.exact(g)
    code = g.codes(exact)
    weighted, weighted_code = g.w * (exact - code), g.w * code
    rest_sum, code_sum = np.add.reduce(weighted, axis=0), np.add.reduce(weighted_code, axis=0)
    rest_code = np.add.reduce(weighted * code, axis=0)
    squares = np.add.reduce(weighted_code * code, axis=0)
    determinant = g.sum_w * squares - code_sum * code_sum
    slope = (g.sum_w * rest_code - code_sum * rest_sum) / determinant
    slope = np.where(determinant > 0, slope, np.float32(0))
    scale = g.stored(fit.scale + fit.scale * slope)
    bias = fit.bias + (fit.scale * rest_sum + (fit.scale - scale) * code_sum) / g.sum_w
    return _Fit(scale, g.stored(bias))


def _better(g: _Groups, fit: _Fit, best: _Fit) -> _Fit:
    """In each group the one of less error whose largest value is finite."""
    import numpy as np

    difference = g.x - (fit.scale * g.codes(fit.exact(g)) + fit.bias)
    error = np.add.reduce(g.w * difference * difference, axis=0)
    better = (error < best.error) & (np.abs(fit.scale * g.top) * g.unit <= np.float32(_LARGEST))
    fit = replace(fit, error=error)
    return _Fit(*(np.where(better, getattr(fit, part), getattr(best, part)) for part in ("scale", "bias", "error")))
