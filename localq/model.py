"""Models to talk to: `load` a reference, then `generate`, `stream` and `tokenize`.

A model is an engine, the tokenizer and the chat template together. This module decides which files belong
together; how tokens become text is the business of `localq.generation`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from localq.checkpoint.safetensors_header import is_written_by_mlx
from localq.conversion.convert import ConversionListener, convert
from localq.engines.availability import default_recipe_name, require_backend
from localq.engines.base import Engine
from localq.errors import ChatTemplateError, CheckpointError, OptionError
from localq.families.config import parse_config
from localq.families.table import family_of
from localq.generation import Completion, TextRules, complete, stream
from localq.json_files import read_json, read_optional_json
from localq.options import DEFAULT_CONTEXT_LENGTH_TOKENS, GenerationOptions, LoadOptions
from localq.recipes import Recipe, parse_recipe
from localq.reference import ModelReference, parse_reference
from localq.store.manifest import read_artifact
from localq.text.chat_template import ChatTemplate, load_chat_template
from localq.text.end_tokens import end_tokens
from localq.text.tokenizer import Tokenizer, load_tokenizer
from localq.turns import ReplyStream, Turns

Message = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`; roles are those of the model's chat template."""

Prompt = str | Sequence[Message]
"""One user message (or raw text), or a conversation."""


@dataclass(frozen=True, slots=True)
class ModelParts:
    """What a model is put together from."""

    name: str
    """The reference it was loaded by, without the recipe."""
    recipe_name: str
    """Its form, such as `gguf-q4_k_m`; `gguf` or `mlx` for a file or folder that localq did not make."""
    engine: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    end_tokens: frozenset[int]
    load_seconds: float = 0.0


class Model:
    """A model to talk to. A context manager; safe to share between threads, which take turns."""

    def __init__(self, parts: ModelParts) -> None:
        self.name = parts.name
        self.recipe_name = parts.recipe_name
        self.engine = parts.engine
        self.tokenizer = parts.tokenizer
        self.chat_template = parts.chat_template
        self.end_tokens = parts.end_tokens
        self.load_seconds = parts.load_seconds
        self._turns = Turns()

    @property
    def context_length(self) -> int:
        """Tokens of prompt and reply that fit."""
        return self.engine.context_length

    def tokenize(self, text: str) -> list[int]:
        """Ids of the text alone; no special token is added."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def prompt_token_ids(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """The ids that `generate` would feed the engine: the same for every form of a model.

        A string is one user message; `raw` takes it as plain text, with the tokenizer's own special tokens.
        Raises ChatTemplateError when the model has no chat template.
        """
        if raw:
            if not isinstance(prompt, str):
                raise OptionError("raw=True takes a string, not a list of messages")
            return self.tokenizer.encode(prompt, add_special_tokens=True)
        if self.chat_template is None:
            raise ChatTemplateError(
                f"{self.name} has no chat template: it is a base model, or its files are incomplete",
                "use --raw (raw=True) to continue plain text",
            )
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        text = self.chat_template.render(messages)
        # The template writes its own special tokens, as in Hugging Face's apply_chat_template.
        return self.tokenizer.encode(text, add_special_tokens=False)

    def generate(self, prompt: Prompt, *, raw: bool = False, **options: Any) -> Completion:
        """Answer a prompt. `options` are the fields of `GenerationOptions`, or `options=GenerationOptions(...)`.

        Raises PromptTooLongError, ChatTemplateError, OptionError or EngineError.
        """
        generation_options = _generation_options(options)
        ids = self.prompt_token_ids(prompt, raw=raw)
        with self._turns.turn():
            return complete(self.engine, self._rules(raw), ids, generation_options)

    def stream(self, prompt: Prompt, *, raw: bool = False, **options: Any) -> ReplyStream:
        """As `generate`, piece by piece; the last chunk carries the finish reason and the statistics.

        Closing the stream, or leaving its `with` block, stops the engine and leaves the model usable.
        """
        generation_options = _generation_options(options)
        ids = self.prompt_token_ids(prompt, raw=raw)
        return ReplyStream(self._turns, lambda: stream(self.engine, self._rules(raw), ids, generation_options))

    def _rules(self, raw: bool) -> TextRules:
        # The space that SentencePiece puts before a text belongs to a continuation, and not to a reply.
        strip = self.tokenizer.strips_leading_space and not raw
        return TextRules(self.tokenizer, self.end_tokens, strip)

    def close(self) -> None:
        """Free the engine's memory; waits for a reply that another thread is reading."""
        with self._turns.turn():
            self.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(
    reference: str | os.PathLike[str] | ModelReference,
    *,
    context_length: int | None = None,
    threads: int | None = None,
    models_dir: Path | str | None = None,
    listener: ConversionListener | None = None,
) -> Model:
    """Open a model by reference; a form that was not made yet is made first.

    Raises errors of the tree in `localq.errors`.
    """
    parsed = reference if isinstance(reference, ModelReference) else parse_reference(reference)
    options = LoadOptions(context_length=context_length, threads=threads)
    if parsed.kind == "gguf":
        return open_gguf_file(cast(Path, parsed.path), options)
    if parsed.kind == "folder" and parsed.recipe is None and is_form(cast(Path, parsed.path)):
        return open_form(cast(Path, parsed.path), options)
    recipe = chosen_recipe(parsed)
    require_backend(recipe.format)
    (artifact,) = convert(parsed.without_recipe(), [recipe], models_dir=models_dir, listener=listener)
    return open_form(artifact.folder, options)


def chosen_recipe(reference: ModelReference) -> Recipe:
    """The recipe that a reference names, else this platform's default."""
    return reference.recipe or parse_recipe(default_recipe_name())


def is_form(folder: Path) -> bool:
    """Whether a folder can be opened as it is: an artifact of localq, or an MLX folder made elsewhere.

    MLX marks the weight files that it writes; quantized forms also say so in their config.
    """
    if read_artifact(folder) is not None or "quantization" in read_optional_json(folder / "config.json"):
        return True
    return any(is_written_by_mlx(file) for file in sorted(folder.glob("model*.safetensors"))[:1])


def open_form(folder: Path, options: LoadOptions) -> Model:
    """Open an artifact's folder, or an MLX folder that localq did not make. Never converts."""
    started = time.perf_counter()
    artifact = read_artifact(folder)
    config = read_json(folder / "config.json")
    form = artifact.recipe.format if artifact else "mlx"
    tokenizer = load_tokenizer(folder)
    engine = _open_engine(form, artifact.path if artifact else folder, options, config)
    parts = ModelParts(
        name=artifact.manifest.model if artifact else folder.name,
        recipe_name=artifact.manifest.recipe if artifact else form,
        engine=engine,
        tokenizer=tokenizer,
        chat_template=load_chat_template(folder),
        end_tokens=end_tokens(config, read_optional_json(folder / "generation_config.json"), tokenizer),
        load_seconds=time.perf_counter() - started,
    )
    return Model(parts)


def open_gguf_file(path: Path, options: LoadOptions) -> Model:
    """Open a GGUF file with the vocabulary and the chat template that it brings."""
    from localq.text.gguf_tokenizer import gguf_chat_template, gguf_end_tokens, load_gguf_tokenizer

    started = time.perf_counter()
    require_backend("gguf")
    tokenizer = load_gguf_tokenizer(path)
    architecture = tokenizer.metadata("general.architecture")
    trained = int(tokenizer.metadata(f"{architecture}.context_length") or DEFAULT_CONTEXT_LENGTH_TOKENS)
    original = tokenizer.metadata(f"{architecture}.rope.scaling.original_context_length")
    default = min(int(original or trained), DEFAULT_CONTEXT_LENGTH_TOKENS)
    template = gguf_chat_template(tokenizer)
    engine = _open("gguf", path, _within(options, trained), default)
    parts = ModelParts(
        name=path.stem,
        recipe_name="gguf",
        engine=engine,
        tokenizer=tokenizer,
        chat_template=ChatTemplate(template, tokenizer.special_tokens) if template else None,
        end_tokens=gguf_end_tokens(tokenizer),
        load_seconds=time.perf_counter() - started,
    )
    return Model(parts)


def _open_engine(form: str, path: Path, options: LoadOptions, config: Mapping[str, Any]) -> Engine:
    try:
        family = family_of(config)
    except CheckpointError:  # a foreign form, of a model that localq does not convert
        maximum = int(config.get("max_position_embeddings", DEFAULT_CONTEXT_LENGTH_TOKENS))
        default = min(maximum, DEFAULT_CONTEXT_LENGTH_TOKENS)
    else:
        parsed = parse_config(config)
        maximum = parsed.max_position_embeddings
        default = family.default_context_length(parsed)
    return _open(form, path, _within(options, maximum), default)


def _within(options: LoadOptions, maximum: int) -> LoadOptions:
    if options.context_length is not None and options.context_length > maximum:
        raise OptionError(
            f"a context of {options.context_length} tokens is more than the model's {maximum}",
            f"give -c/--context-length {maximum} or less",
        )
    return options


def _open(form: str, path: Path, options: LoadOptions, default_context_length: int) -> Engine:
    engine = import_module(require_backend(form).engine_module).open_engine(path, options, default_context_length)
    return cast(Engine, engine)


def _generation_options(options: dict[str, Any]) -> GenerationOptions:
    given = options.pop("options", None)
    if given is not None and not isinstance(given, GenerationOptions):
        raise OptionError(f"options is {given!r}; expected GenerationOptions")
    try:
        return replace(given, **options) if given is not None else GenerationOptions(**options)
    except TypeError as error:
        unknown = ", ".join(sorted(set(options) - set(GenerationOptions.__dataclass_fields__)))
        known = ", ".join(GenerationOptions.__dataclass_fields__)
        raise OptionError(f"unknown generation option: {unknown}", f"options: {known}") from error
