"""What a conversion will write, before anything is written.

A plan lists the tensors of one form in file order, each with its source, its type and its exact size, so
that headers can be written first, disk space be checked, and `--dry-run` tell sizes without doing the work.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.safetensors_header import DTYPE_BYTES
from localq.conversion import ggml
from localq.errors import ConversionError
from localq.families.base import TensorLayout
from localq.recipes import GgufRecipe, MlxRecipe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) of the checkpoint's weights."""

GGUF_ALIGNMENT_BYTES = 32
"""Every tensor of a GGUF file starts at a multiple of this (`GGUF_DEFAULT_ALIGNMENT`)."""

MLX_LARGEST_SHARD_BYTES = 5 << 30
"""Where mlx_lm begins another file, so localq does too."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor of a GGUF file: taken from the checkpoint (`layout`) or computed by the family (`values`)."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    """ggml's name, such as `q4_K`."""
    layout: TensorLayout | None = None
    values: NDArray[np.float32] | None = None

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def type_number(self) -> int:
        return ggml.type_number(self.type_name)

    @property
    def nbytes(self) -> int:
        return self.rows * ggml.row_bytes(self.type_number, self.columns)


@dataclass(frozen=True, slots=True)
class GgufPlan:
    """The tensors of one GGUF file, in file order."""

    recipe: GgufRecipe
    tensors: tuple[GgufTensor, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of tensor data, padding included."""
        return sum(padded(tensor.nbytes) for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class MlxTensor:
    """One tensor of an MLX form; a quantized one is stored as weight, scales and biases."""

    layout: TensorLayout
    dtype: str
    """Safetensors dtype of the values, or of scales and biases where `bits` is set."""
    bits: int | None
    group_size: int

    def stored(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (safetensors dtype, shape) of what is written, in file order.

        MLX packs `32 / bits` weights into one uint32 (several words where bits do not divide 32), and keeps
        one scale and one bias for each group of a row (`mx.quantize`).
        """
        if self.bits is None:
            return {self.layout.name: (self.dtype, self.layout.shape)}
        rows, columns = self.layout.shape
        stem = self.layout.name.removesuffix(".weight")
        groups = (self.dtype, (rows, columns // self.group_size))
        packed = ("U32", (rows, columns * self.bits // 32))
        return {f"{stem}.weight": packed, f"{stem}.scales": groups, f"{stem}.biases": groups}

    @property
    def nbytes(self) -> int:
        return sum(stored_bytes(dtype, shape) for dtype, shape in self.stored().values())


@dataclass(frozen=True, slots=True)
class MlxPlan:
    """The tensors of one MLX folder, in file order."""

    recipe: MlxRecipe
    tensors: tuple[MlxTensor, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of tensor data."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def shards(self) -> Iterator[list[MlxTensor]]:
        """The tensors of each file."""
        shard: list[MlxTensor] = []
        used = 0
        for tensor in self.tensors:
            if shard and used + tensor.nbytes > MLX_LARGEST_SHARD_BYTES:
                yield shard
                shard, used = [], 0
            shard.append(tensor)
            used += tensor.nbytes
        yield shard


Plan = GgufPlan | MlxPlan


def make_plan(checkpoint: Checkpoint, recipe: GgufRecipe | MlxRecipe) -> Plan:
    """Plan one form; raises ConversionError where the recipe does not fit the checkpoint."""
    if isinstance(recipe, MlxRecipe):
        return plan_mlx(checkpoint, recipe)
    return plan_gguf(checkpoint, recipe)


def plan_mlx(checkpoint: Checkpoint, recipe: MlxRecipe) -> MlxPlan:
    """Which tensors are quantized: all matrices whose rows divide into groups, as mlx_lm does by default."""
    tensors = []
    for layout in checkpoint.layouts:
        dtype = _SAFETENSORS_DTYPES[recipe.dtype] if recipe.dtype else checkpoint.stored(layout).dtype
        fits = len(layout.shape) == 2 and layout.shape[1] % recipe.group_size == 0
        tensors.append(MlxTensor(layout, dtype, recipe.bits if fits else None, recipe.group_size))
    if recipe.bits is not None and not any(tensor.bits for tensor in tensors):
        raise ConversionError(
            f"{recipe.name} fits no tensor: no row length is a multiple of {recipe.group_size}",
            "choose a smaller group, such as mlx-4bit-g32, or a gguf recipe",
        )
    return MlxPlan(recipe, tuple(tensors))


def plan_gguf(checkpoint: Checkpoint, recipe: GgufRecipe) -> GgufPlan:
    """Types and order as llama.cpp's quantizer would choose them, asked of the quantizer itself.

    It is asked with the whole header, so that a tokenizer that can't be had as GGUF is refused here, before
    any work: raises CheckpointError then, and ConversionError for what the quantizer refuses.
    """
    from localq.conversion.gguf import write_header

    family, config = checkpoint.family, checkpoint.config
    unquantized = {}
    for layout in checkpoint.layouts:
        # llama.cpp keeps vectors in single precision whatever the file type.
        type_name = checkpoint.stored(layout).dtype.lower() if len(layout.shape) > 1 else "f32"
        unquantized[layout.gguf_name] = GgufTensor(layout.gguf_name, layout.shape, type_name, layout=layout)
    for name, values in family.gguf_extra_tensors(config).items():
        unquantized[name] = GgufTensor(name, values.shape, "f32", values=values)

    source = GgufPlan(recipe, tuple(unquantized.values()))
    with _temporary_folder() as folder:
        probe = folder / "probe.gguf"
        write_header(checkpoint, source, probe)
        with probe.open("r+b") as stream:  # a hole instead of weights: the dry run looks at the header only
            stream.truncate(probe.stat().st_size + source.weight_bytes)
        types = ggml.planned_types(probe, recipe.file_type_number)
    if types.keys() != unquantized.keys():
        differing = sorted(types.keys() ^ unquantized.keys())
        raise ConversionError(
            f"llama.cpp's plan does not cover the model's tensors: {', '.join(differing[:3])}",
            "this llama-cpp-python words its log in another way than localq knows: report its version",
        )
    tensors = [_with_type(unquantized[name], type_name) for name, type_name in types.items()]
    return GgufPlan(recipe, tuple(tensors))


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Wrap no reading of the checkpoint whose errors are not translated yet: an OSError is blamed on this folder."""
    try:
        with tempfile.TemporaryDirectory(prefix="localq-plan-") as folder:
            yield Path(folder)
    except OSError as error:
        raise ConversionError(
            f"the plan of a GGUF file can't be written to the temporary folder: {error.strerror or error}",
            "make room there, or point TMPDIR to a folder that has some",
        ) from error


def padded(nbytes: int) -> int:
    """`nbytes` up to GGUF's alignment."""
    return nbytes + -nbytes % GGUF_ALIGNMENT_BYTES


def _with_type(tensor: GgufTensor, type_name: str) -> GgufTensor:
    return GgufTensor(tensor.name, tensor.shape, type_name, tensor.layout, tensor.values)


_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in a safetensors file."""
    return math.prod(shape) * DTYPE_BYTES[dtype]
