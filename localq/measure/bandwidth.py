"""How fast this machine reads memory: the limit of every token that it generates."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from localq.backends import has_backend
from localq.hardware import available_logical_cores, mlx_runs_on_gpu

_BYTES = 1 << 30  # beyond any cache: servers have half of it
_ROUNDS = 10


def memory_bandwidth_bytes_per_second() -> float:
    """Bytes read per second by what computes here, the best of ten rounds; takes a second or two.

    On a Mac by the GPU, elsewhere by all cores together. The GPU of a graphics card reads its own memory, which this
    does not measure.
    """
    on_gpu = sys.platform == "darwin" and has_backend("mlx") and mlx_runs_on_gpu()
    return _read_by_gpu() if on_gpu else _read_by_cores()


def _read_by_cores() -> float:
    """Each core sums up an array of its own, which costs next to no arithmetic.

    On two cores with AVX-512 this read 10% faster than numpy's maximum, and faster than a loop in C with prefetching.
    """
    import numpy as np

    cores = available_logical_cores()
    arrays = [np.ones(_BYTES // cores // 8, dtype=np.int64) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        return _best_rate(lambda: list(pool.map(np.sum, arrays)))


def _read_by_gpu() -> float:
    """One maximum over an array, by Metal. Not run on a Mac."""
    import mlx.core as mx

    array = mx.ones((_BYTES // 4,), dtype=mx.float32)
    mx.eval(array)
    return _best_rate(lambda: mx.eval(mx.max(array)))


def _best_rate(read: Callable[[], object]) -> float:
    best = 0.0
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        read()
        best = max(best, _BYTES / (time.perf_counter() - started))
    return best
