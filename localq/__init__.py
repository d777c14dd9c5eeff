"""Convert a Phi or Llama checkpoint to MLX and GGUF, talk to both, and measure which runs better here.

    import localq

    with localq.load("toy-llama:gguf-q4_k_m") as model:
        print(model.generate("What is the capital of France?", max_tokens=50))
        for chunk in model.stream([{"role": "user", "content": "What is the capital of Italy?"}]):
            print(chunk, end="", flush=True)

        conversation = localq.Conversation(model, "Be brief.")
        print(conversation.ask("What is the capital of Spain?").read())

A model reference is `org/name` of the Hugging Face hub, a folder, a `.gguf` file, or one of the models that come with
localq, `toy-llama` and `toy-phi`. A format may follow: `org/name:mlx-4bit`.

    pull, convert, load     download a checkpoint; make formats of it; open one. `load` does what is missing by itself
    ls                      what was converted
    calibrate               which weights matter most: for calibrated formats and those with a budget
    bench, evaluate         speed and memory of formats; what quantization changes in a model's predictions
    Model                   generate, stream, tokenize
    Conversation            ask, retry, continue_reply, undo, save, load

`repr()` says what an object is, `str()` of a reply is its text, reports and lists are shown as tables. `help()` of a
function describes its options.

Every error raised on purpose is a LocalqError, with `message` and `hint`; `localq.errors` has the others by name.
Names are imported when they are first used, so that `import localq` takes a few milliseconds.
"""

from localq.version import __version__

TYPE_CHECKING = False  # as type checkers know it; `typing` is half of what this import would cost
if TYPE_CHECKING:
    from localq.api import ls as ls
    from localq.api import pull as pull
    from localq.api_measuring import bench as bench
    from localq.api_measuring import calibrate as calibrate
    from localq.api_measuring import evaluate as evaluate
    from localq.conversation import Conversation as Conversation
    from localq.conversation import Reply as Reply
    from localq.conversion.convert import ConversionListener as ConversionListener
    from localq.conversion.convert import convert as convert
    from localq.errors import LocalqError as LocalqError
    from localq.generation import Chunk as Chunk
    from localq.generation import Completion as Completion
    from localq.generation import GenerationStatistics as GenerationStatistics
    from localq.model import Model as Model
    from localq.model import load as load
    from localq.options import GenerationOptions as GenerationOptions
    from localq.options import LoadOptions as LoadOptions
    from localq.store.manifest import Artifact as Artifact
    from localq.turns import ReplyStream as ReplyStream

_HOMES = {
    "Artifact": "localq.store.manifest",
    "Chunk": "localq.generation",
    "Completion": "localq.generation",
    "Conversation": "localq.conversation",
    "ConversionListener": "localq.conversion.convert",
    "GenerationOptions": "localq.options",
    "GenerationStatistics": "localq.generation",
    "LoadOptions": "localq.options",
    "LocalqError": "localq.errors",
    "Model": "localq.model",
    "Reply": "localq.conversation",
    "ReplyStream": "localq.turns",
    "bench": "localq.api_measuring",
    "calibrate": "localq.api_measuring",
    "convert": "localq.conversion.convert",
    "evaluate": "localq.api_measuring",
    "load": "localq.model",
    "ls": "localq.api",
    "pull": "localq.api",
}

__all__ = [
    "Artifact",
    "Chunk",
    "Completion",
    "Conversation",
    "ConversionListener",
    "GenerationOptions",
    "GenerationStatistics",
    "LoadOptions",
    "LocalqError",
    "Model",
    "Reply",
    "ReplyStream",
    "__version__",
    "bench",
    "calibrate",
    "convert",
    "evaluate",
    "load",
    "ls",
    "pull",
]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'localq' has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
