"""A checkpoint folder in Hugging Face format: read and checked, its tensors brought to one shape. Loads no weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localq.checkpoint.dequantize import dequantized, require_known_method, without_empty_biases
from localq.checkpoint.tensors import (
    FLOAT_DTYPE_OF,
    FLOAT_DTYPES,
    StackedTensor,
    WeightTensor,
    opened,
    row_ranges,
    to_float32,
)
from localq.checkpoint.weights import Weights, find_weights
from localq.errors import CheckpointError, UnsupportedModelError
from localq.families.base import Family, TensorLayout, is_rotary_table
from localq.families.config import ModelConfig, parse_config
from localq.families.table import family_of
from localq.json_files import read_json
from localq.regular_files import is_there
from localq.text.tokenizer_json import TOKENIZER_SOURCES, has_tokenizer

TOKENIZER_FILES = (
    *TOKENIZER_SOURCES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""What is copied into an artifact unchanged, so that it needs no other folder."""

_OTHER_MODEL = "config.json and weights are of different models: download both again"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Someone else's weights, read-only."""

    name: str
    """For people: `org/name`, or the name of a built-in or of the folder."""
    revision: str
    """The hub's commit; for a plain folder see `fingerprint`."""
    folder: Path
    config: ModelConfig
    family: Family
    weights: Weights
    layouts: tuple[TensorLayout, ...]
    """Every tensor that is converted; all are there, with these shapes."""

    @property
    def parameters(self) -> int:
        """Number of weights, as in "3.8 billion parameters"."""
        return sum(math.prod(layout.shape) for layout in self.layouts)

    def tensor(self, layout: TensorLayout) -> WeightTensor:
        """The tensor of a layout."""
        return self.weights.tensors[layout.name]

    def tokenizer_files(self) -> list[Path]:
        """The files of tokenizer, template and generation settings that the folder has."""
        return [self.folder / name for name in TOKENIZER_FILES if is_there(self.folder / name)]


def open_checkpoint(folder: Path, name: str, revision: str | None = None) -> Checkpoint:
    """Read and check a folder: config, family, and every tensor's presence, shape and dtype.

    Raises CheckpointError or UnsupportedModelError that name the file, key or tensor.
    """
    config, family = read_config(folder)
    if not has_tokenizer({file.name for file in folder.iterdir()}):
        raise CheckpointError(
            f"{folder} has no tokenizer.json",
            f"download it from the model's page, or else one of {', '.join(TOKENIZER_SOURCES[1:])}",
        )
    contents = read_contents(folder, config, family)
    tensors = contents.weights.tensors
    for fault in tensor_faults(tensors, contents.layouts, contents.config):
        raise fault
    logical = Weights({layout.name: _tensor(layout, tensors) for layout in contents.layouts})
    revision = revision or fingerprint(folder, contents.weights)
    return Checkpoint(name, revision, folder, contents.config, family, logical, contents.layouts)


@dataclass(frozen=True, slots=True)
class Contents:
    """The tensors that a folder has and those that its config needs, before they are compared (`tensor_faults`)."""

    weights: Weights
    """Weights that are stored quantized are read as floats."""
    layouts: tuple[TensorLayout, ...]
    config: ModelConfig
    """As in config.json, but not tied where the weights have a separate output layer."""


def read_contents(folder: Path, config: ModelConfig, family: Family) -> Contents:
    """Find the tensors of a checkpoint folder. Raises CheckpointError or UnsupportedModelError."""
    weights = find_weights(folder)
    if config.layer_count > len(weights.tensors):
        raise CheckpointError(
            f"config.json says {config.layer_count} layers; the weights are only {len(weights.tensors)} tensors",
            _OTHER_MODEL,
        )
    expected = {name for layout in family.tensors(config) for name in layout.sources}
    tensors = _with_prefix(weights.tensors, expected)
    quantization = _quantization(config.raw)
    if quantization is not None:
        tensors = without_empty_biases(dequantized(tensors, quantization, _dtype(config.raw)), expected)
    if config.tied_embeddings and _has_own_output_layer(tensors):
        config = replace(config, tied_embeddings=False)
        family.check(config)
    return Contents(Weights(tensors), tuple(family.tensors(config)), config)


_PREFIX, _EMBEDDING, _OUTPUT = "model.", "model.embed_tokens.weight", "lm_head.weight"


def _with_prefix(tensors: Mapping[str, WeightTensor], expected: set[str]) -> Mapping[str, WeightTensor]:
    """A model that was saved as LlamaModel, without its output layer, has names that do not start with `model.`."""
    if _EMBEDDING in tensors or _EMBEDDING.removeprefix(_PREFIX) not in tensors:
        return tensors
    return {name if name in expected else _PREFIX + name: tensor for name, tensor in tensors.items()}


def _has_own_output_layer(tensors: Mapping[str, WeightTensor]) -> bool:
    """Whether there is an output layer that differs from the embedding, although the config ties the two.

    Fine-tunes that trained it have one. transformers and llama.cpp's converter use it then.
    """
    import numpy as np

    embedding, output = tensors.get(_EMBEDDING), tensors.get(_OUTPUT)
    if embedding is None or output is None or embedding.shape != output.shape or len(output.shape) != 2:
        return output is not None and embedding is not None
    with opened((embedding, output)) as files:
        for start, stop in row_ranges(*output.shape):
            first, second = (to_float32(tensor.read_rows(files, start, stop)) for tensor in (embedding, output))
            if not np.array_equal(first, second):
                return True
    return False


def _tensor(layout: TensorLayout, tensors: Mapping[str, WeightTensor]) -> WeightTensor:
    if not layout.parts:
        return tensors[layout.name]
    return StackedTensor(layout.name, tuple(tensors[part] for part in layout.parts))


def read_config(folder: Path) -> tuple[ModelConfig, Family]:
    """`config.json` and the family that converts it: enough to refuse a checkpoint before its weights are downloaded.

    Raises CheckpointError or UnsupportedModelError.
    """
    raw = read_json(folder / "config.json")
    family = family_of(raw)
    _quantization(raw)
    config = parse_config(raw)
    family.check(config)
    return config, family


def tensor_faults(
    tensors: Mapping[str, WeightTensor], layouts: Sequence[TensorLayout], config: ModelConfig
) -> Iterator[CheckpointError]:
    """Every difference between the tensors that are there and those that the config needs."""
    for layout in layouts:
        shape = layout.shape[1:] if layout.parts else layout.shape
        for name in layout.sources:
            yield from _faults_of(name, tensors.get(name), shape)
    expected = {name for layout in layouts for name in layout.sources}
    for name in tensors:
        tied_head = name == "lm_head.weight" and config.tied_embeddings  # a copy of the embedding
        if name not in expected and not is_rotary_table(name) and not tied_head:
            yield CheckpointError(
                f"tensor {name} is not part of a {config.architecture}",
                "is it an adapter, or a model for more than text? localq converts text-only models",
            )


def _faults_of(name: str, tensor: WeightTensor | None, shape: tuple[int, ...]) -> Iterator[CheckpointError]:
    if tensor is None:
        yield CheckpointError(f"the checkpoint has no tensor {name}", _missing_hint(name))
    elif tensor.shape != shape:
        yield CheckpointError(f"tensor {name} has shape {tensor.shape}; config.json needs {shape}", _OTHER_MODEL)
    elif tensor.dtype not in FLOAT_DTYPES:
        yield UnsupportedModelError(
            f"tensor {name} is of dtype {tensor.dtype}",
            f"localq converts {', '.join(FLOAT_DTYPES)}: take the unquantized checkpoint",
        )


def _missing_hint(name: str) -> str:
    if name == "lm_head.weight":
        return 'if the output layer shares the embedding, config.json must say "tie_word_embeddings": true'
    return "the checkpoint is incomplete: download it again: `localq pull --verify REPO`"


def fingerprint(folder: Path, weights: Weights) -> str:
    """A hash over the names, sizes and modification times of the folder's files, without their contents.

    40 hexadecimal digits, as long as a commit of the hub.
    """
    named = [folder / "config.json", *(folder / name for name in TOKENIZER_FILES)]
    files = [file for file in (*named, *weights.files()) if file.exists()]
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:40]


def _quantization(raw: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How the weights are quantized; None where they are not.

    Raises UnsupportedModelError for a method that localq does not read.
    """
    quantization = raw.get("quantization_config") or raw.get("quantization")
    if not quantization:
        return None
    if not isinstance(quantization, Mapping):
        raise CheckpointError(
            f'config.json: "quantization_config" is {quantization!r}, not an object',
            "take config.json from the model's page again",
        )
    require_known_method(quantization)
    return quantization


def _dtype(raw: Mapping[str, Any]) -> str:
    """What quantized weights are rounded to where they store no dtype; bfloat16 where the config has none either."""
    return FLOAT_DTYPE_OF.get(str(raw.get("torch_dtype") or raw.get("dtype")), "BF16")
