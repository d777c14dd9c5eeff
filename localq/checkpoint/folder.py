"""A checkpoint folder in Hugging Face format: read, checked and normalised. Loads no weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localq.checkpoint.dequantize import dequantized, require_known_method, without_empty_biases
from localq.checkpoint.faults import tensor_faults
from localq.checkpoint.tensors import StackedTensor, WeightFiles, WeightTensor, row_ranges, to_float32
from localq.checkpoint.weights import Weights, find_weights
from localq.errors import CheckpointError
from localq.families.base import Family, TensorLayout
from localq.families.config import ModelConfig, parse_config
from localq.families.table import family_of
from localq.json_files import read_json
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
"""What an artifact takes over unchanged, so that it needs nothing else."""

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Someone else's weights, read-only."""

    name: str
    """As shown to people: `org/name`, a built-in's name, or the folder's."""
    revision: str
    """The hub's commit; of a plain folder, a hash over its files' names, sizes and times."""
    folder: Path
    config: ModelConfig
    family: Family
    weights: Weights
    layouts: tuple[TensorLayout, ...]
    """Every tensor that will be converted; all are present, with these shapes."""

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(math.prod(layout.shape) for layout in self.layouts)

    def tensor(self, layout: TensorLayout) -> WeightTensor:
        """The tensor of a layout."""
        return self.weights.tensors[layout.name]

    def tokenizer_files(self) -> list[Path]:
        """Tokenizer, template and generation settings that the folder has."""
        return [self.folder / name for name in TOKENIZER_FILES if (self.folder / name).is_file()]


def open_checkpoint(folder: Path, name: str, revision: str | None = None) -> Checkpoint:
    """Read and check a folder: config, family, and every tensor's presence, shape and dtype.

    Raises CheckpointError or UnsupportedModelError that name the file, key or tensor.
    """
    config, family = read_config(folder)
    if not has_tokenizer({file.name for file in folder.iterdir() if file.is_file()}):
        raise CheckpointError(
            f"{folder} has no tokenizer.json",
            f"download it from the model's page; {', '.join(TOKENIZER_SOURCES[1:])} would do as well",
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
    """What a folder has and what its config asks for, before the two are compared (`tensor_faults`)."""

    weights: Weights
    """Those that are stored quantized come as floats."""
    layouts: tuple[TensorLayout, ...]
    config: ModelConfig
    """As the weights show it: not tied where there is an output layer of its own."""


def read_contents(folder: Path, config: ModelConfig, family: Family) -> Contents:
    """Find the tensors of a checkpoint folder. Raises CheckpointError or UnsupportedModelError."""
    weights = find_weights(folder)
    if config.layer_count > len(weights.tensors):
        raise CheckpointError(
            f"config.json asks for {config.layer_count} layers; the weights are {len(weights.tensors)} tensors",
            "config.json and weights are of different models: download both again",
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
    """A model that was saved without its output layer, as LlamaModel, has the names without `model.` in front."""
    if _EMBEDDING in tensors or _EMBEDDING.removeprefix(_PREFIX) not in tensors:
        return tensors
    return {name if name in expected else _PREFIX + name: tensor for name, tensor in tensors.items()}


def _has_own_output_layer(tensors: Mapping[str, WeightTensor]) -> bool:
    """Whether there is an output layer that is not the embedding once more, although the config ties the two.

    Fine-tunes that trained it have one. transformers takes it then, and so does llama.cpp's converter.
    """
    import numpy as np

    embedding, output = tensors.get(_EMBEDDING), tensors.get(_OUTPUT)
    if embedding is None or output is None or embedding.shape != output.shape or len(output.shape) != 2:
        return output is not None and embedding is not None
    files = WeightFiles()
    files.open({*embedding.files, *output.files})
    try:
        for start, stop in row_ranges(*output.shape):
            first, second = (to_float32(tensor.read_rows(files, start, stop)) for tensor in (embedding, output))
            if not np.array_equal(first, second):
                return True
        return False
    finally:
        files.close()


def _tensor(layout: TensorLayout, tensors: Mapping[str, WeightTensor]) -> WeightTensor:
    if not layout.parts:
        return tensors[layout.name]
    return StackedTensor(layout.name, tuple(tensors[part] for part in layout.parts))


def read_config(folder: Path) -> tuple[ModelConfig, Family]:
    """What `config.json` says, and who converts it: enough to refuse a checkpoint before its weights are here.

    Raises CheckpointError or UnsupportedModelError.
    """
    raw = read_json(folder / "config.json")
    family = family_of(raw)
    _quantization(raw)
    config = parse_config(raw)
    family.check(config)
    return config, family


def fingerprint(folder: Path, weights: Weights) -> str:
    """A hash that changes when the folder's files do: names, sizes and modification times, no contents.

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
    """How the weights are stored quantized; None where they are not.

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
    """What quantized weights are rounded to where they don't say it themselves; bfloat16 where the config is silent."""
    return _DTYPES.get(str(raw.get("torch_dtype") or raw.get("dtype")), "BF16")
