"""What the headers say of a checkpoint: what it is, what it can be converted to, and every fault in it.

Loads no weights, except in `read_all_weights`, which looks for NaN and infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from localq.backends import has_backend, require_backend
from localq.checkpoint.dequantize import quantization_name
from localq.checkpoint.folder import Checkpoint, read_config, read_contents, tensor_faults
from localq.checkpoint.source import CheckpointPlace
from localq.checkpoint.tensors import FLOAT_DTYPES, row_ranges
from localq.checkpoint.weights import Weights, find_weights
from localq.conversion.plan import memory_use, plan_recipe
from localq.conversion.plan_gguf import gguf_metadata
from localq.conversion.tokenizer_caveats import gguf_tokenizer_caveats
from localq.conversion.vocabulary import TokenizerFolder
from localq.errors import ChatTemplateError, CheckpointError, LocalqError
from localq.families.base import Family
from localq.families.config import ModelConfig
from localq.json_files import read_json, read_optional_json
from localq.recipes import Recipe
from localq.store.manifest import Fallback
from localq.text.chat_template import load_chat_template
from localq.text.end_tokens import end_tokens
from localq.text.tokenizer import Tokenizer, load_tokenizer

_MOST_FAULTS = 20  # of one kind: with a wrong hidden_size, thousands of tensors have a wrong shape

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong, and how to fix it."""

    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Form:
    """What the checkpoint would be in one format."""

    recipe: Recipe
    weight_bytes: int
    """On disk, exactly."""
    bits_per_weight: float
    fallbacks: tuple[Fallback, ...]
    """Tensors that get another type than the recipe asks for."""
    memory_bytes: int
    """Of the loaded weights on this machine."""
    longest_context_tokens: int
    """That fits in the free memory; 0 where the weights alone don't fit."""
    runs_here: bool
    """Whether the backend is installed."""


@dataclass(slots=True)
class Examination:
    """Everything found. What a fault made unreadable is None or empty."""

    place: CheckpointPlace
    config: ModelConfig | None = None
    family: Family | None = None
    stored_as: str | None = None
    """How the weights are quantized, in words; None where they are not."""
    dtype_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of the weight files by precision, as they are stored."""
    weights: Weights | None = None
    """All tensors of the folder, quantized ones as floats."""
    checkpoint: Checkpoint | None = None
    tokenizer: Tokenizer | None = None
    chat_template: Literal["works", "fails", "none"] = "none"
    notes: list[str] = field(default_factory=list)
    """Differences of a runtime from the model's reference, and what the model can't do."""
    forms: list[Form] = field(default_factory=list)
    refused: dict[str, Fault] = field(default_factory=dict)
    """Recipes that don't fit the checkpoint, or can't be converted to on this platform."""
    faults: list[Fault] = field(default_factory=list)
    is_read_whole: bool = False
    """Whether the values of the weights were checked."""

    def add(self, error: LocalqError) -> None:
        """Note an error as a fault, once: several readers may fail on the same file."""
        if all(error.message != fault.message for fault in self.faults):
            self.faults.append(Fault(error.message, error.hint))

    def add_all(self, errors: Iterable[LocalqError], of_what: str) -> None:
        """As `add`, at most `_MOST_FAULTS` of them; the others are counted."""
        found = list(errors)
        for error in found[:_MOST_FAULTS]:
            self.add(error)
        if len(found) > _MOST_FAULTS:
            self.add(CheckpointError(f"and {len(found) - _MOST_FAULTS:,} more {of_what}", found[_MOST_FAULTS].hint))

    @contextmanager
    def noting_faults(self) -> Iterator[None]:
        """Add what is raised, and continue after the block."""
        try:
            yield
        except LocalqError as error:
            self.add(error)


def examine(place: CheckpointPlace, recipes: Sequence[Recipe], free_memory_bytes: int) -> Examination:
    """Examine a checkpoint folder. Faults are collected and not raised."""
    found = Examination(place)
    with found.noting_faults():
        raw = read_json(place.folder / "config.json")
        found.stored_as = _stored_as(raw)
        found.config, found.family = read_config(place.folder)
    _examine_weights(found)
    with found.noting_faults():
        found.tokenizer = load_tokenizer(place.folder)
    if found.tokenizer is not None:
        _examine_tokenizer(found, found.tokenizer)
    _examine_chat_template(found)
    if found.config is not None and found.family is not None:
        found.notes += found.family.caveats(found.config)
    if found.family is not None and "gguf" in found.family.formats and found.tokenizer is not None:
        found.notes += gguf_tokenizer_caveats(TokenizerFolder(place.folder))
    if found.checkpoint is not None:
        _examine_forms(found, found.checkpoint, recipes, free_memory_bytes)
    return found


def read_all_weights(found: Examination, progress: Progress) -> None:
    """Read every weight; each tensor with NaN or infinity, and each file that can't be read, is added as a fault.

    Works also where tensors are missing, or config.json can't be read.
    """
    if found.weights is None:
        return
    tensors = {name: tensor for name, tensor in found.weights.tensors.items() if tensor.dtype in FLOAT_DTYPES}
    total, done = sum(tensor.nbytes for tensor in tensors.values()), 0
    faults: list[LocalqError] = []
    with found.noting_faults(), found.weights as weights:
        for name, tensor in tensors.items():
            *leading, columns = tensor.shape or (1,)
            rows, columns = (math.prod(leading), columns) if leading else (columns, 1)
            try:
                for start, stop in row_ranges(rows, columns) if columns else ():
                    weights.read_rows(name, start, stop)
            except LocalqError as error:
                faults.append(error)
            done += tensor.nbytes
            progress(done, total)
        found.is_read_whole = True
    found.add_all(faults, "tensors with NaN or infinity, or that can't be read")


def _stored_as(raw: Mapping[str, Any]) -> str | None:
    quantization = raw.get("quantization_config") or raw.get("quantization")
    return quantization_name(quantization) if isinstance(quantization, Mapping) and quantization else None


def _examine_weights(found: Examination) -> None:
    folder = found.place.folder
    with found.noting_faults():
        found.weights = find_weights(folder)
        for tensor in found.weights.tensors.values():
            found.dtype_bytes[tensor.dtype] = found.dtype_bytes.get(tensor.dtype, 0) + tensor.nbytes
    if found.weights is None or found.config is None or found.family is None:
        return
    with found.noting_faults():
        contents = read_contents(folder, found.config, found.family)
        found.weights, found.config = contents.weights, contents.config
        faults = list(tensor_faults(contents.weights.tensors, contents.layouts, contents.config))
        found.add_all(faults, "tensors that are missing, unknown or of a wrong shape")
        if not faults:
            found.checkpoint = found.place.open()


def _examine_tokenizer(found: Examination, tokenizer: Tokenizer) -> None:
    folder, config = found.place.folder, found.config
    if config is not None and tokenizer.vocabulary_size > config.vocabulary_size:
        found.add(
            CheckpointError(
                f"the tokenizer has {tokenizer.vocabulary_size:,} tokens; the model has {config.vocabulary_size:,}",
                "take tokenizer and weights of the same model: tokens were added, but the weights were not resized",
            )
        )
    with found.noting_faults():
        settings = read_json(folder / "config.json"), read_optional_json(folder / "generation_config.json")
        if not end_tokens(*settings, tokenizer):
            raise CheckpointError("no token ends a reply", 'config.json needs an "eos_token_id"')


def _examine_chat_template(found: Examination) -> None:
    try:
        template = load_chat_template(found.place.folder)
        if template is None:
            found.notes.append("It has no chat template: a base model, which continues text (`localq generate --raw`).")
            return
        found.chat_template = "fails"
        template.render([{"role": "user", "content": "Hello"}])
        found.chat_template = "works"
    except ChatTemplateError as error:
        found.chat_template = "fails"
        hint = "download the template from the model's page again; `localq generate --raw` does not use it"
        found.add(CheckpointError(f"the chat template fails on a user's message: {error.message}", hint))
    except LocalqError as error:
        found.add(error)


def _examine_forms(
    found: Examination, checkpoint: Checkpoint, recipes: Sequence[Recipe], free_memory_bytes: int
) -> None:
    gguf_refusal = _gguf_refusal(found, checkpoint) if any(recipe.format == "gguf" for recipe in recipes) else None
    for recipe in recipes:
        try:
            if recipe.format == "gguf" and gguf_refusal:
                raise gguf_refusal
            found.forms.append(_form(checkpoint, recipe, free_memory_bytes))
        except LocalqError as error:
            found.refused[recipe.name] = Fault(error.message, error.hint)


def _gguf_refusal(found: Examination, checkpoint: Checkpoint) -> LocalqError | None:
    """Why no GGUF can be made of any type. A tokenizer that GGUF can't hold is added as a fault as well."""
    try:
        require_backend("gguf")
        gguf_metadata(checkpoint, tokenizer=None)
    except LocalqError as error:
        return error
    try:
        gguf_metadata(checkpoint, TokenizerFolder(checkpoint.folder))
    except LocalqError as error:
        if found.tokenizer is not None and found.tokenizer.vocabulary_size <= checkpoint.config.vocabulary_size:
            found.add(error)  # else the fault is noted already
        return error
    return None


def _form(checkpoint: Checkpoint, recipe: Recipe, free_memory_bytes: int) -> Form:
    plan = plan_recipe(checkpoint, recipe)
    memory = memory_use(plan, checkpoint.config)
    most = checkpoint.config.max_position_embeddings
    return Form(
        recipe=recipe,
        weight_bytes=plan.weight_bytes,
        bits_per_weight=8 * plan.weight_bytes / checkpoint.parameters,
        fallbacks=plan.fallbacks,
        memory_bytes=memory.weight_bytes,
        longest_context_tokens=memory.longest_context_tokens(free_memory_bytes, most),
        runs_here=has_backend(recipe.format),
    )
