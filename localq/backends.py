"""Which backends are installed here, and the formats that follow from it. Imports no backend to find out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from localq.errors import BackendUnavailableError
from localq.hardware import has_metal
from localq.recipes import DEFAULT_RECIPES, RECIPES


@dataclass(frozen=True, slots=True)
class Backend:
    """What runs the artifacts of `mlx` or `gguf`."""

    engine_module: str
    """Has `open_engine(path, options, context_length)`; see `localq.engines.base`."""
    library: str
    """The package that must be installed."""
    hint: str
    """What to do without it."""


BACKENDS = {
    "mlx": Backend("localq.engines.mlx", "mlx_lm", "MLX needs Apple silicon or Linux: use a GGUF format (gguf-q4_k_m)"),
    "gguf": Backend("localq.engines.llamacpp", "llama_cpp", "pip install llama-cpp-python"),
}
"""By `Recipe.format`. `localq.engines.base` states how to add an engine."""


def has_backend(name: str) -> bool:
    """Whether the library that runs `mlx` or `gguf` is installed."""
    return find_spec(BACKENDS[name].library) is not None


def require_backend(name: str) -> Backend:
    """The backend of `mlx` or `gguf`; raises BackendUnavailableError where it is not installed."""
    backend = BACKENDS[name]
    if not has_backend(name):
        raise BackendUnavailableError(f"{backend.library}, which runs {name}, is not installed", backend.hint)
    return backend


def default_recipe_names() -> tuple[str, ...]:
    """What `convert` makes and `bench` compares where none is named: the default recipes that can run here."""
    return tuple(name for name in DEFAULT_RECIPES if has_backend(RECIPES[name].format))


def default_recipe_name() -> str:
    """What `generate` and `chat` use where none is named: MLX on a machine with Metal, else GGUF."""
    return "mlx-4bit" if has_metal() else "gguf-q4_k_m"
