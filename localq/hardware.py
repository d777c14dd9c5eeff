"""Cores and GPU that this process may use, how fast they read memory, and how much memory the process took.

Imports an engine only for its GPU.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

_STATUS = Path("/proc/self/status")

_BYTES_READ = 1 << 30  # beyond any cache: those of servers have half of it
_ROUNDS = 10

_RUSAGE_INFO_V4 = 4
_RUSAGE_WORDS = 64  # room for later versions of the struct; version 4 has 38 words
_LIFETIME_MAX_PHYS_FOOTPRINT = 30  # its word in `struct rusage_info_v4` of sys/resource.h


def available_logical_cores() -> int:
    """Logical cores that this process may run on: fewer than there are within `taskset` or a container's CPU set."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_cores() -> int:
    """Physical cores that this process may run on, as far as the system says; else its logical ones."""
    import psutil

    logical_cores = available_logical_cores()
    return min(psutil.cpu_count(logical=False) or logical_cores, logical_cores)


def has_metal() -> bool:
    """Whether MLX is installed and can compute through Metal."""
    if sys.platform == "darwin" and find_spec("mlx_lm") is not None:
        import mlx.core as mx

        return bool(mx.metal.is_available())
    return False


def llama_cpp_has_gpu() -> bool:
    """Whether llama.cpp was built for a GPU, and there is one. llama_cpp must be installed."""
    import llama_cpp

    return bool(llama_cpp.llama_supports_gpu_offload())


def mlx_runs_on_gpu() -> bool:
    """Whether MLX computes on a GPU: there may be one that it was told not to use. MLX must be installed."""
    import mlx.core as mx

    return bool(mx.default_device().type == mx.DeviceType.gpu)


def peak_memory_bytes() -> int:
    """Most memory that this process has used so far.

    Linux: the peak resident set (`VmHWM` of proc(5)), pages of a memory-mapped model file included. Where a
    sandbox hides it, `ru_maxrss`, which a new program inherits from the process that started it: it may be
    too large.

    macOS: the larger one of the peak resident set and the peak physical footprint. The footprint counts Metal
    buffers but no clean pages of a mapped file; the resident set counts those pages but not the buffers. Memory in
    both must not count twice. Pages of a mapped file that only the GPU touched may be missing.
    """
    import resource

    most_resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return max(_peak_footprint_bytes(), most_resident)  # bytes there, kilobytes elsewhere
    try:
        match = re.search(rb"^VmHWM:\s*(\d+) kB$", _STATUS.read_bytes(), re.MULTILINE)
    except OSError:
        match = None
    return (int(match[1]) if match else most_resident) * 1024


def _peak_footprint_bytes() -> int:
    """0 where macOS does not say."""
    import ctypes

    usage = (ctypes.c_uint64 * _RUSAGE_WORDS)()
    failed = ctypes.CDLL("/usr/lib/libSystem.B.dylib").proc_pid_rusage(os.getpid(), _RUSAGE_INFO_V4, usage)
    return 0 if failed else int(usage[_LIFETIME_MAX_PHYS_FOOTPRINT])


def memory_bandwidth_bytes_per_second() -> float:
    """Bytes read per second by what computes here, the best of ten rounds; takes a second or two.

    On a Mac by the GPU, elsewhere by all cores together. A graphics card's own memory is not measured.
    """
    return _read_by_gpu() if has_metal() and mlx_runs_on_gpu() else _read_by_cores()


def _read_by_cores() -> float:
    """Each core sums up an array of its own, which takes almost no arithmetic.

    On two cores with AVX-512 this read 10% faster than numpy's maximum, and faster than a loop in C with prefetching.
    """
    import numpy as np

    cores = available_logical_cores()
    arrays = [np.ones(_BYTES_READ // cores // 8, dtype=np.int64) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        return _best_rate(lambda: list(pool.map(np.sum, arrays)))


def _read_by_gpu() -> float:
    """One maximum over an array, by Metal. Not run on a Mac."""
    import mlx.core as mx

    array = mx.ones((_BYTES_READ // 4,), dtype=mx.float32)
    mx.eval(array)
    return _best_rate(lambda: mx.eval(mx.max(array)))


def _best_rate(read: Callable[[], object]) -> float:
    best = 0.0
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        read()
        best = max(best, _BYTES_READ / (time.perf_counter() - started))
    return best
