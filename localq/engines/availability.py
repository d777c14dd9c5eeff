"""Which backends are installed. Imports none to say it."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from localq.errors import BackendUnavailableError
from localq.hardware import has_metal
from localq.recipes import DEFAULT_RECIPES, RECIPES


@dataclass(frozen=True, slots=True)
class Backend:
    """What runs the forms of one format."""

    engine_module: str
    """Has `open_engine(path, options, default_context_length)`."""
    library: str
    """The package that must be installed."""
    hint: str
    """What to do without it."""


BACKENDS = {
    "mlx": Backend("localq.engines.mlx", "mlx_lm", "MLX needs Apple silicon or Linux: use a gguf form (gguf-q4_k_m)"),
    "gguf": Backend("localq.engines.llamacpp", "llama_cpp", "pip install llama-cpp-python"),
}
"""By format. A new engine is one file and one line here."""


def has_backend(form: str) -> bool:
    """Whether the library that runs `mlx` or `gguf` forms is installed."""
    return find_spec(BACKENDS[form].library) is not None


def require_backend(form: str) -> Backend:
    """The backend of `mlx` or `gguf` forms; raises BackendUnavailableError where it is not installed."""
    backend = BACKENDS[form]
    if not has_backend(form):
        raise BackendUnavailableError(f"this platform has no {backend.library}, which {form} forms need", backend.hint)
    return backend


def default_recipe_names() -> tuple[str, ...]:
    """The forms that `convert` makes and `bench` compares when they are not told: those that can run here."""
    return tuple(name for name in DEFAULT_RECIPES if has_backend(RECIPES[name].format))


def default_recipe_name() -> str:
    """The form for whoever names none: MLX where Metal is there, GGUF elsewhere."""
    return "mlx-4bit" if has_metal() else "gguf-q4_k_m"
