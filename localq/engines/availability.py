"""Which backends and how many cores there are for this process. Imports no backend to say which there are."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from localq.errors import BackendUnavailableError

_BACKENDS = {
    "mlx": ("mlx_lm", "MLX needs Apple silicon or Linux: use a gguf form, such as :gguf-q4_k_m"),
    "gguf": ("llama_cpp", "pip install llama-cpp-python"),
}


def has_backend(form: str) -> bool:
    """Whether the library that runs `mlx` or `gguf` forms is installed."""
    return find_spec(_BACKENDS[form][0]) is not None


def require_backend(form: str) -> None:
    """Raise BackendUnavailableError where `mlx` or `gguf` forms can't be made or run."""
    if not has_backend(form):
        library, hint = _BACKENDS[form]
        raise BackendUnavailableError(f"this platform has no {library}, which {form} forms need", hint)


def default_recipe_name() -> str:
    """The form for whoever names none: MLX where Metal is there, GGUF elsewhere."""
    if sys.platform == "darwin" and has_backend("mlx"):
        import mlx.core as mx

        if mx.metal.is_available():
            return "mlx-4bit"
    return "gguf-q4_k_m"


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
