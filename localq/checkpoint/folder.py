"""A checkpoint folder in Hugging Face format: read, checked and normalised. Loads no weights."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from localq.checkpoint.safetensors_header import StoredTensor
from localq.checkpoint.weights import FLOAT_DTYPES, Weights, find_weights
from localq.errors import CheckpointError, UnsupportedModelError
from localq.families.base import Family, TensorLayout, is_rotary_table
from localq.families.config import ModelConfig, architecture_of, parse_config
from localq.families.table import find_family
from localq.json_files import read_json

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
"""What an artifact takes over unchanged, so that it needs nothing else."""


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
        return sum(self.stored(layout).element_count for layout in self.layouts)

    def stored(self, layout: TensorLayout) -> StoredTensor:
        """Where the tensor of a layout lies."""
        return self.weights.tensors[layout.name]

    def tokenizer_files(self) -> list[Path]:
        """Tokenizer, template and generation settings that the folder has."""
        return [self.folder / name for name in TOKENIZER_FILES if (self.folder / name).is_file()]


def open_checkpoint(folder: Path, name: str, revision: str | None = None) -> Checkpoint:
    """Read and check a folder: config, family, and every tensor's presence, shape and dtype.

    Raises CheckpointError or UnsupportedModelError that name the file, key or tensor.
    """
    config, family = read_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json",
            "localq takes the tokenizer from that file: download it from the model's page",
        )
    weights = find_weights(folder)
    if config.layer_count > len(weights.tensors):
        raise CheckpointError(
            f"config.json asks for {config.layer_count} layers; the weights are {len(weights.tensors)} tensors",
            "config.json and weights are of different models: download both again",
        )
    layouts = tuple(family.tensors(config))
    _check_tensors(weights, layouts, family, config)
    return Checkpoint(name, revision or fingerprint(folder, weights), folder, config, family, weights, layouts)


def read_config(folder: Path) -> tuple[ModelConfig, Family]:
    """What `config.json` says, and who converts it: enough to refuse a checkpoint before its weights are here.

    Raises CheckpointError or UnsupportedModelError.
    """
    raw = read_json(folder / "config.json")
    family = find_family(architecture_of(raw))
    _refuse_quantized(raw.get("quantization_config") or raw.get("quantization"))
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


def _refuse_quantized(quantization: object) -> None:
    if quantization:
        method = quantization.get("quant_method", "MLX") if isinstance(quantization, dict) else quantization
        raise UnsupportedModelError(
            f"the checkpoint is already quantized ({method})",
            "convert from the original, unquantized checkpoint",
        )


def _check_tensors(weights: Weights, layouts: tuple[TensorLayout, ...], family: Family, config: ModelConfig) -> None:
    expected = {layout.name: layout for layout in layouts}
    for layout in layouts:
        stored = weights.tensors.get(layout.name)
        if stored is None:
            raise CheckpointError(f"the checkpoint has no tensor {layout.name}", _missing_hint(layout))
        if stored.shape != layout.shape:
            raise CheckpointError(
                f"tensor {layout.name} has shape {stored.shape}; config.json asks for {layout.shape}",
                "config.json and weights are of different models: download both again",
            )
        if stored.dtype not in FLOAT_DTYPES:
            raise UnsupportedModelError(
                f"tensor {layout.name} is of dtype {stored.dtype}",
                f"localq converts {', '.join(FLOAT_DTYPES)}: take the unquantized checkpoint",
            )
    for name in weights.tensors:
        tied_head = name == "lm_head.weight" and config.tied_embeddings
        if name not in expected and not is_rotary_table(name) and not tied_head:
            raise CheckpointError(
                f"tensor {name} has no place in a {config.architecture}",
                "is it an adapter, or a model with more than text? localq converts plain text models",
            )


def _missing_hint(layout: TensorLayout) -> str:
    if layout.name == "lm_head.weight":
        return 'if the output layer shares the embedding, config.json must say "tie_word_embeddings": true'
    return "the checkpoint is incomplete: download it again"
