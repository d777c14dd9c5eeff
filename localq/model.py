"""Models to talk to: `load` a reference, then `generate`, `stream` and `tokenize`.

A model is an engine, a tokenizer and a chat template. This module chooses the files that they are read from;
`localq.generation` turns token ids into a reply.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Unpack, cast

from localq.backends import default_recipe_name, require_backend
from localq.checkpoint.hub import DownloadProgress
from localq.checkpoint.safetensors_header import is_written_by_mlx, read_header
from localq.checkpoint.source import fetch_folder, fetch_form, is_quantized_by_mlx
from localq.context_length import config_limits, gguf_limits
from localq.conversion.convert import ConversionListener, listener_or_default, make_forms
from localq.conversion.plan import Request
from localq.engines.base import Constraint, Engine
from localq.engines.prompt_cache import load_prompt_cache, save_prompt_cache, weights_fingerprint
from localq.errors import CheckpointError, OptionError
from localq.generation import Chunk, Completion, TextRules, complete, stream
from localq.gguf_file import model_name, read_model_header, require_openable
from localq.json_files import read_config, read_optional_json
from localq.keywords import named_options
from localq.memory import gguf_file_memory, mlx_folder_memory, require_memory
from localq.options import GenerationKeywords, GenerationOptions, LoadKeywords, LoadOptions, chosen_options
from localq.recipes import Recipe, parse_recipe
from localq.reference import ForeignForm, ModelReference, is_local, parse_reference
from localq.store.manifest import Artifact, read_artifact
from localq.store.store import Store
from localq.structured.constraints import Grammars
from localq.structured.tools import ToolFormat, find_tool_format
from localq.text.chat_template import ChatTemplate, check_messages, load_chat_template, missing_chat_template
from localq.text.end_tokens import end_tokens
from localq.text.tokenizer import Tokenizer, load_tokenizer
from localq.trial import mlx
from localq.turns import ReplyStream, StopCheck, Turns

Message = Mapping[str, Any]
"""`{"role": "user", "content": "..."}`; the model's chat template defines the roles."""

Prompt = str | Sequence[Message]
"""One user message (or raw text), or a conversation."""


@dataclass(eq=False)
class Model:
    """A model to talk to, opened by `localq.load`.

        with localq.load("toy-llama") as model:
            print(model.generate("What is the capital of France?"))
            for chunk in model.stream("What is the capital of Italy?", max_tokens=20):
                print(chunk, end="", flush=True)

    A context manager; safe to share between threads: their replies wait for each other.
    """

    name: str
    """The reference it was loaded by, without the recipe."""
    recipe_name: str
    """Its format, such as `gguf-q4_k_m`; `gguf` or `mlx` for a file or folder that localq did not make."""
    engine: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    end_tokens: frozenset[int]
    fingerprint: str
    """Identifies its weights."""
    load_seconds: float = 0.0
    _turns: Turns = field(default_factory=Turns, init=False)
    _is_closed: bool = field(default=False, init=False)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"context of {self.context_length:,} tokens"
        return f"<Model {self.name}:{self.recipe_name}, {state}>"

    @property
    def context_length(self) -> int:
        """Tokens of prompt and reply that fit."""
        return self.engine.context_length

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, without added special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def prompt_token_ids(
        self, prompt: Prompt, *, raw: bool = False, tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """The ids that `generate` would give the engine: the same for every format of a model.

        A string is one user message; with `raw` it is plain text, encoded with the tokenizer's own special tokens.
        `tools` are described as OpenAI's protocol does; in messages, calls have arguments as objects.
        Raises ChatTemplateError when the model has no chat template, or names the message that is wrong.
        """
        if raw:
            if not isinstance(prompt, str):
                raise OptionError(f"raw=True takes a string, not a {type(prompt).__name__}")
            return self.tokenizer.encode(prompt, add_special_tokens=True)
        if self.chat_template is None:
            raise missing_chat_template(self.name)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        check_messages(messages, self.chat_template)
        variables: dict[str, Any] = {}
        if tools or any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
            messages, variables = self.tool_format.conversation(messages, tools)
        text = self.chat_template.render(messages, **variables)
        # The template writes its own special tokens, as in Hugging Face's apply_chat_template.
        return self.tokenizer.encode(text, add_special_tokens=False)

    @named_options(GenerationOptions)
    def generate(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        options: GenerationOptions | None = None,
        **changes: Unpack[GenerationKeywords],
    ) -> Completion:
        """Answer a prompt: a question, or a list of messages such as {"role": "user", "content": "..."}.

        With `raw` the prompt is plain text, to be continued without the chat template. `options` holds many options at
        once; those that are given by name count more. `str()` of the result is the reply's text. Raises
        PromptTooLongError, ChatTemplateError, OptionError or EngineError.
        """
        chosen = chosen_options(options, changes)
        ids = self.prompt_token_ids(prompt, raw=raw)
        rules = replace(self.text_rules(raw=raw), constraint=self.constraint(chosen))
        with self._turns.turn():
            return complete(self.engine, rules, ids, chosen)

    @named_options(GenerationOptions)
    def stream(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        options: GenerationOptions | None = None,
        **changes: Unpack[GenerationKeywords],
    ) -> ReplyStream:
        """As `generate`, piece by piece; the last chunk has the finish reason and the statistics.

        Nothing is computed before the first piece is read. Closing the stream, or leaving its `with` block, stops the
        engine and leaves the model usable.
        """
        chosen = chosen_options(options, changes)
        return self.stream_ids(self.prompt_token_ids(prompt, raw=raw), chosen, raw=raw)

    def stream_ids(
        self, ids: Sequence[int], options: GenerationOptions, *, begun: Sequence[int] = (), raw: bool = False
    ) -> ReplyStream:
        """As `stream`, from token ids; `begun` are those of a reply to continue, after the prompt."""
        constraint = self.constraint(options, begun)
        rules = replace(self.text_rules(raw=raw), begun=tuple(begun), constraint=constraint)
        whole = [*ids, *begun]

        def start(require_wanted: StopCheck, is_stopped: Callable[[], bool]) -> Generator[Chunk, None, None]:
            return stream(self.engine, rules, whole, options, lambda done, total: require_wanted(), is_stopped)

        return ReplyStream(self._turns, start)

    def load_prompt_cache(self, file: Path | str) -> None:
        """Read what `save_prompt_cache` wrote. Raises OptionError for another model's file, EngineError for damage."""
        with self._turns.turn():
            load_prompt_cache(self.engine, Path(file), self.fingerprint)

    def save_prompt_cache(self, file: Path | str) -> None:
        """Write what was computed for the newest prompt and its reply to a file, for a later run."""
        with self._turns.turn():
            save_prompt_cache(self.engine, Path(file), self.fingerprint)

    def text_rules(self, *, raw: bool = False) -> TextRules:
        """How the ids of a reply become text; `raw` where it continues a plain text."""
        # The space that SentencePiece puts before a text is right before a continuation, and not before a reply.
        strip = self.tokenizer.strips_leading_space and not raw
        return TextRules(self.tokenizer, self.end_tokens, strip)

    @cached_property
    def grammars(self) -> Grammars:
        """What replies may be, over this model's vocabulary."""
        return Grammars(self.tokenizer, self.end_tokens)

    @cached_property
    def tool_format(self) -> ToolFormat:
        """How this model calls tools. Raises ChatTemplateError where its chat template ignores them."""
        if self.chat_template is None:
            raise missing_chat_template(self.name)
        return find_tool_format(self.chat_template, self.tokenizer, self.end_tokens)

    def constraint(self, options: GenerationOptions, begun: Sequence[int] = ()) -> Constraint | None:
        """What a reply may be by the options, after the ids that it begins with. Raises OptionError."""
        constraint = self.grammars.constraint(options)
        if constraint is not None:
            for token in begun:
                constraint.accept(token)
        return constraint

    def turn(self) -> AbstractContextManager[None]:
        """For a `with` block that uses the engine: replies of other threads wait."""
        return self._turns.turn()

    def close(self) -> None:
        """Free the engine's memory; waits for a reply that another thread is reading."""
        with self._turns.turn():
            self.engine.close()
            self._is_closed = True

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@named_options(LoadOptions)
def load(
    reference: str | os.PathLike[str] | ModelReference,
    *,
    models_dir: Path | str | None = None,
    listener: ConversionListener | None = None,
    needs_chat_template: bool = False,
    **options: Unpack[LoadKeywords],
) -> Model:
    """Open a model; it is downloaded and converted first where that was not done before.

        localq.load("toy-llama")                                   a model that comes with localq
        localq.load("microsoft/Phi-4-mini-instruct:gguf-q4_k_m")   a repository of the hub, and a format of it
        localq.load("./checkpoint", context_length=4096)           a checkpoint's folder, an MLX folder, a .gguf file

    Without a format: MLX 4-bit on Apple silicon, else GGUF Q4_K_M. `models_dir` is the folder of converted models.
    `listener` gets the progress of download and conversion; without one, IPython and Jupyter show bars. With
    `needs_chat_template`, a checkpoint without one is refused before it is converted. Use the model in a `with` block,
    or close it. Raises errors of the tree in `localq.errors`, all of them LocalqError.
    """
    parsed = reference if isinstance(reference, ModelReference) else parse_reference(reference)
    load_options = LoadOptions(**options)
    listener = listener_or_default(listener)
    ready = ready_form(parsed, models_dir, listener.on_download, needs_chat_template)
    if ready is not None:
        model = open_form(ready, load_options) if ready.is_dir() else open_gguf_file(ready, load_options)
        if parsed.kind == "repo":  # people know it by the repository, and not by its place in the cache
            model.name = parsed.name
            model.recipe_name = parsed.recipe.name if parsed.recipe else model.recipe_name
        return model
    recipe = chosen_recipe(parsed)
    require_backend(recipe.format)
    request = Request(parsed.without_recipe(), [recipe], models_dir, needs_chat_template=needs_chat_template)
    (made,) = make_forms(request, listener)
    return open_form(made.artifact.folder, load_options)


def ready_form(
    reference: ModelReference,
    models_dir: Path | str | None = None,
    on_download: DownloadProgress | None = None,
    needs_chat_template: bool = False,
) -> Path | None:
    """The `.gguf` file or MLX folder that a reference names, where it runs as it is; None where it must be converted.

    A repository is downloaded when it is not in the Hugging Face cache, unless localq has converted it before; where
    one without a chat template is of no use, its weights are not. Raises errors of the tree in `localq.errors`.
    """
    if reference.kind == "gguf":
        return reference.path
    if reference.kind == "repo" and not is_local(reference.name):
        if not isinstance(reference.recipe, ForeignForm):
            store, recipe = Store(models_dir), chosen_recipe(reference)
            if store.find(reference.without_recipe(), recipe):
                return None
        path = fetch_form(reference, on_download)
        if path is not None or reference.recipe is not None:
            return path
        folder = fetch_folder(reference, on_download, _refuse_base_models(reference) if needs_chat_template else None)
        return folder if is_form(folder) else None
    if reference.kind == "folder" and reference.recipe is None and is_form(cast(Path, reference.path)):
        return reference.path
    return None


def _refuse_base_models(reference: ModelReference) -> Callable[[Path], None]:
    def check(folder: Path) -> None:
        if load_chat_template(folder) is None:
            raise missing_chat_template(reference.name)

    return check


def chosen_recipe(reference: ModelReference) -> Recipe:
    """The recipe that a reference names, else this platform's default."""
    assert not isinstance(reference.recipe, ForeignForm), "ready_form opens those, or raises"
    return reference.recipe or parse_recipe(default_recipe_name())


def is_form(folder: Path) -> bool:
    """Whether a folder can be opened as it is: an artifact of localq, or an MLX folder that another program made.

    MLX marks the weight files that it writes; the config.json of a quantized model states it too.
    """
    if read_artifact(folder) is not None or is_quantized_by_mlx(folder):
        return True
    return any(is_written_by_mlx(file) for file in sorted(folder.glob("model*.safetensors"))[:1])


def open_form(folder: Path, options: LoadOptions, *, counts_as_use: bool = True) -> Model:
    """Open an artifact's folder, or an MLX folder that localq did not make. Never converts.

    Notes the time as that of the artifact's last use, unless told not to.
    """
    artifact = read_artifact(folder)
    if artifact and counts_as_use:
        artifact.touch()
    if artifact and artifact.is_imported_file:
        model = open_gguf_file(artifact.path, options)
        model.name, model.recipe_name = artifact.manifest.model, artifact.manifest.recipe
        return model
    form = artifact.recipe.format if artifact else "mlx"
    require_backend(form)
    config = read_config(folder)
    context_length = config_limits(config).chosen(options.context_length)
    if form == "mlx":
        _require_openable_folder(folder, config)
    else:
        require_openable(cast(Artifact, artifact).path)
    started = time.perf_counter()
    name = artifact.manifest.model if artifact else folder.name
    tokenizer = load_tokenizer(folder)
    if artifact and form == "gguf":
        use = gguf_file_memory(read_model_header(artifact.path), options)
    else:
        use = mlx_folder_memory(folder, config, options)
    require_memory(name, form, use, context_length)
    return Model(
        name=name,
        recipe_name=artifact.manifest.recipe if artifact else form,
        engine=_open_engine(form, artifact.path if artifact else folder, options, context_length),
        tokenizer=tokenizer,
        chat_template=load_chat_template(folder),
        end_tokens=end_tokens(config, read_optional_json(folder / "generation_config.json"), tokenizer),
        fingerprint="".join(f.sha256 for f in artifact.manifest.files) if artifact else weights_fingerprint(folder),
        load_seconds=time.perf_counter() - started,
    )


def open_gguf_file(path: Path, options: LoadOptions) -> Model:
    """Open a GGUF file, or the first part of a split one, with the vocabulary and the chat template in it."""
    from localq.text.gguf_tokenizer import gguf_chat_template, gguf_end_tokens, load_gguf_tokenizer

    require_backend("gguf")
    require_openable(path)  # is no part of the load time
    started = time.perf_counter()
    header = read_model_header(path)
    context_length = gguf_limits(header).chosen(options.context_length)
    require_memory(path.name, "gguf", gguf_file_memory(header, options), context_length)
    tokenizer = load_gguf_tokenizer(path)
    template = gguf_chat_template(tokenizer)
    return Model(
        name=model_name(path),
        recipe_name="gguf",
        engine=_open_engine("gguf", path, options, context_length),
        tokenizer=tokenizer,
        chat_template=ChatTemplate(template, tokenizer.special_tokens) if template else None,
        end_tokens=gguf_end_tokens(tokenizer),
        fingerprint=weights_fingerprint(path),
        load_seconds=time.perf_counter() - started,
    )


def _require_openable_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError or ModelFileError for an MLX folder that would end the process, or fill its memory."""
    tensors = sum(len(read_header(file)) for file in sorted(folder.glob("model*.safetensors")))
    layers = config.get("num_hidden_layers")
    if isinstance(layers, int) and layers > tensors > 0:
        raise CheckpointError(
            f"config.json says {layers} layers; the weights are only {tensors} tensors",
            "config.json and weights are of different models: download both again",
        )
    mlx.require_openable(folder)


def _open_engine(form: str, path: Path, options: LoadOptions, context_length: int) -> Engine:
    engine = import_module(require_backend(form).engine_module).open_engine(path, options, context_length)
    return cast(Engine, engine)
