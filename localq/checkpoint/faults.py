"""What can be wrong with the tensors of a checkpoint, told one by one: missing, misshapen, of no use, too many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from localq.checkpoint.tensors import FLOAT_DTYPES, WeightTensor
from localq.errors import CheckpointError, UnsupportedModelError
from localq.families.base import TensorLayout, is_rotary_table
from localq.families.config import ModelConfig

_OTHER_MODEL = "config.json and weights are of different models: download both again"


def tensor_faults(
    tensors: Mapping[str, WeightTensor], layouts: Sequence[TensorLayout], config: ModelConfig
) -> Iterator[CheckpointError]:
    """Every difference between the tensors that are there and those that the config asks for."""
    for layout in layouts:
        shape = layout.shape[1:] if layout.parts else layout.shape
        for name in layout.sources:
            yield from _faults_of(name, tensors.get(name), shape)
    expected = {name for layout in layouts for name in layout.sources}
    for name in tensors:
        tied_head = name == "lm_head.weight" and config.tied_embeddings  # the embedding once more
        if name not in expected and not is_rotary_table(name) and not tied_head:
            yield CheckpointError(
                f"tensor {name} has no place in a {config.architecture}",
                "is it an adapter, or a model with more than text? localq converts plain text models",
            )


def _faults_of(name: str, tensor: WeightTensor | None, shape: tuple[int, ...]) -> Iterator[CheckpointError]:
    if tensor is None:
        yield CheckpointError(f"the checkpoint has no tensor {name}", _missing_hint(name))
    elif tensor.shape != shape:
        yield CheckpointError(f"tensor {name} has shape {tensor.shape}; config.json asks for {shape}", _OTHER_MODEL)
    elif tensor.dtype not in FLOAT_DTYPES:
        yield UnsupportedModelError(
            f"tensor {name} is of dtype {tensor.dtype}",
            f"localq converts {', '.join(FLOAT_DTYPES)}: take the unquantized checkpoint",
        )


def _missing_hint(name: str) -> str:
    if name == "lm_head.weight":
        return 'if the output layer shares the embedding, config.json must say "tie_word_embeddings": true'
    return "the checkpoint is incomplete: download it again"
