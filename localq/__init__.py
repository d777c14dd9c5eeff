"""localq: convert a Phi or Llama checkpoint to MLX and GGUF, talk to both, and measure which runs better here.

    import localq

    with localq.load("toy-llama:gguf-q4_k_m") as model:
        print(model.generate("What is the capital of France?").text)

Names are imported when they are first used, so that `import localq` takes a few milliseconds.
"""

from __future__ import annotations

from localq.version import __version__

TYPE_CHECKING = False  # as type checkers know it; `typing` is half of what this import would cost
if TYPE_CHECKING:
    from localq.conversion.convert import convert as convert
    from localq.errors import LocalqError as LocalqError
    from localq.generation import Chunk as Chunk
    from localq.generation import Completion as Completion
    from localq.generation import GenerationStatistics as GenerationStatistics
    from localq.model import Model as Model
    from localq.model import load as load
    from localq.options import GenerationOptions as GenerationOptions
    from localq.store.manifest import Artifact as Artifact

_HOMES = {
    "Artifact": "localq.store.manifest",
    "Chunk": "localq.generation",
    "Completion": "localq.generation",
    "GenerationOptions": "localq.options",
    "GenerationStatistics": "localq.generation",
    "LocalqError": "localq.errors",
    "Model": "localq.model",
    "convert": "localq.conversion.convert",
    "load": "localq.model",
}

__all__ = [
    "Artifact",
    "Chunk",
    "Completion",
    "GenerationOptions",
    "GenerationStatistics",
    "LocalqError",
    "Model",
    "__version__",
    "convert",
    "load",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'localq' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value
