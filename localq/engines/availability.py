"""Which backends this platform has. Imports none of them."""

from __future__ import annotations

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
