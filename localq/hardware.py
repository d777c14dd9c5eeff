"""Cores and GPU that this process may use. Loads no engine unless it is asked for its GPU."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec


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
