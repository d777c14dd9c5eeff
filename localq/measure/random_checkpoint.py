"""A checkpoint without files of weights: the tensors of a shape with made-up values, and a made-up tokenizer.

What is converted and how is the business of `localq.conversion`, which takes it like any other checkpoint.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.tensors import DTYPE_BYTES, PIECE_ELEMENTS, WeightFiles, from_float32
from localq.checkpoint.weights import Weights
from localq.families.base import TensorLayout
from localq.families.config import parse_config
from localq.families.table import family_of
from localq.measure.shapes import Shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

_STANDARD_DEVIATION = 0.02
"""`initializer_range` of Llama and Phi: what their matrices are initialized with, and about what they end up with."""
_DTYPES = {"bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True, slots=True)
class _RandomTensor:
    """A matrix whose every piece begins the same block of random values, or a vector; a `WeightTensor`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    block: NDArray[Any]

    @property
    def nbytes(self) -> int:
        """That a file would have."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    def read_rows(self, files: WeightFiles, start: int, stop: int) -> NDArray[Any]:
        """See `WeightTensor`. A norm is all ones, a bias all zeros: so values stay in bounds over all layers."""
        import numpy as np

        if len(self.shape) < 2:
            value = 1.0 if self.name.endswith(".weight") else 0.0
            return from_float32(np.full(stop - start, value, dtype=np.float32), self.dtype)
        return np.resize(self.block, (stop - start, self.shape[-1]))


class _RandomWeights(Weights):
    """Tensors without files."""

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """As they are: they are known to be finite, which looking at each value of a large model takes its time to."""
        return self.tensors[name].read_rows(WeightFiles(), start, stop)


def random_checkpoint(name: str, shape: Shape, folder: Path) -> Checkpoint:
    """A checkpoint of that shape; `folder` is where `write_files` puts what is not weights.

    Raises UnsupportedModelError or CheckpointError for a config that localq does not convert.
    """
    config, family = parse_config(shape), family_of(shape)
    family.check(config)
    layouts = tuple(family.tensors(config))
    weights = _random_weights(layouts, _DTYPES[shape["torch_dtype"]])
    return Checkpoint(name, "random", folder, config, family, weights, layouts)


def write_files(checkpoint: Checkpoint) -> None:
    """Write `config.json` and a `tokenizer.json` of as many tokens as the model has rows in its embedding."""
    files = {"config.json": checkpoint.config.raw, "tokenizer.json": _tokenizer(checkpoint.config.vocabulary_size)}
    for name, content in files.items():
        (checkpoint.folder / name).write_text(json.dumps(content), encoding="utf-8")


def _random_weights(layouts: tuple[TensorLayout, ...], dtype: str) -> Weights:
    import numpy as np

    values = np.random.default_rng(0).standard_normal(PIECE_ELEMENTS, dtype=np.float32)
    block = from_float32(_STANDARD_DEVIATION * values, dtype)
    return _RandomWeights({layout.name: _RandomTensor(layout.name, dtype, layout.shape, block) for layout in layouts})


def _tokenizer(size: int) -> dict[str, Any]:
    """Byte-level BPE with the rule of GPT-2, without special tokens: no token ends a text.

    Real vocabularies have about as many merges, so that opening it takes about as long.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    merges = list(itertools.islice(_merges(alphabet), size - len(alphabet)))
    tokens = [*alphabet, *map("".join, merges)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    return {
        "version": "1.0",
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def _merges(alphabet: list[str]) -> Iterator[tuple[str, str]]:
    """All pairs of bytes, then these with each byte behind, and so on: no text comes twice."""
    texts = alphabet
    while True:
        yield from itertools.product(texts, alphabet)
        texts = ["".join(pair) for pair in itertools.product(texts, alphabet)]
