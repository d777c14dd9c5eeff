"""What an MLX conversion will write: which tensors are quantized, how, and to how many bytes."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.tensors import DTYPE_BYTES
from localq.errors import ConversionError
from localq.families.base import TensorLayout
from localq.recipes import MlxQuantization, MlxRecipe
from localq.store.manifest import Fallback

if TYPE_CHECKING:
    from localq.conversion.importance import Importance

MLX_LARGEST_SHARD_BYTES = 5 << 30
"""The largest weight file, as in mlx_lm."""

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class MlxTensor:
    """One tensor of an MLX folder; a quantized one is stored as weight, scales and, in affine mode, biases."""

    layout: TensorLayout
    dtype: str
    """Safetensors dtype of the values, or of scales and biases where it is quantized."""
    quantization: MlxQuantization | None

    @property
    def name(self) -> str:
        return self.layout.mlx_name or self.layout.name

    def stored(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> (safetensors dtype, shape) of what is written, in file order.

        MLX packs `32 / bits` weights into one uint32 (several words where bits do not divide 32), and keeps
        one scale and one bias for each group of a row; the float modes keep an 8-bit scale (`mx.quantize`).
        """
        if self.quantization is None:
            return {self.name: (self.dtype, self.layout.shape)}
        *rows, columns = self.layout.shape
        stem = self.name.removesuffix(".weight")
        groups = (*rows, columns // self.quantization.group_size)
        packed = (*rows, columns * self.quantization.bits // 32)
        if self.quantization.mode != "affine":
            return {f"{stem}.weight": ("U32", packed), f"{stem}.scales": ("U8", groups)}
        parts = {"weight": ("U32", packed), "scales": (self.dtype, groups), "biases": (self.dtype, groups)}
        return {f"{stem}.{part}": stored for part, stored in parts.items()}

    @property
    def nbytes(self) -> int:
        return sum(stored_bytes(dtype, shape) for dtype, shape in self.stored().values())


@dataclass(frozen=True, slots=True)
class MlxPlan:
    """The tensors of one MLX folder, in file order."""

    recipe: MlxRecipe
    tensors: tuple[MlxTensor, ...]
    fallbacks: tuple[Fallback, ...] = ()
    importance: Importance | None = None
    """What a calibrated format is quantized with."""
    predicted_kl_divergence: float | None = None
    """Mean, in nats, that the types are predicted to cost; None without a calibration, or with types that it lacks."""

    def is_searched(self, tensor: MlxTensor) -> bool:
        """Whether scales and biases are searched, and not those of `mx.quantize`."""
        return self.recipe.calibrated and tensor.quantization is not None and tensor.quantization.mode == "affine"

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

    def quantization_config(self) -> dict[str, Any] | None:
        """`quantization` in `config.json`: the usual one, and the tensors that differ from it."""
        usual = self._usual_quantization()
        if usual is None:
            return None
        config = _quantization_entry(usual)
        for tensor in self.tensors:
            if tensor.quantization not in (None, usual):
                config[tensor.name.removesuffix(".weight")] = _quantization_entry(tensor.quantization)
        return config

    def _usual_quantization(self) -> MlxQuantization | None:
        """That of the format; under a budget that of most tensors."""
        if self.recipe.budget is None:
            return self.recipe.quantization
        found = Counter(tensor.quantization for tensor in self.tensors if tensor.quantization)
        return found.most_common(1)[0][0] if found else None


def plan_mlx(checkpoint: Checkpoint, recipe: MlxRecipe) -> MlxPlan:
    """Which tensors are quantized: as in mlx_lm all matrices whose rows can be divided into groups, except routers.

    Under a budget nothing is quantized yet: `localq.conversion.budgets` chooses how. Raises ConversionError where the
    recipe fits no tensor.
    """
    tensors, fallbacks = [], []
    # In the order of GGUF files: so both formats are made side by side, and each row is read from the disk once.
    for layout in sorted(checkpoint.layouts, key=_file_order):
        dtype = _DTYPES[recipe.dtype] if recipe.dtype else checkpoint.tensor(layout).dtype
        quantization = _quantization(checkpoint, recipe, layout)
        if quantization and layout.shape[-1] % quantization.group_size:
            wanted = f"{quantization.bits} bits in groups of {quantization.group_size}"
            fallbacks.append(Fallback(layout.mlx_name or layout.name, wanted, dtype.lower()))
            quantization = None
        tensors.append(MlxTensor(layout, dtype, quantization))
    if recipe.budget is None and recipe.quantization and not any(tensor.quantization for tensor in tensors):
        raise ConversionError(
            f"{recipe.name} fits no tensor: no row length is a multiple of {recipe.quantization.group_size}",
            "choose smaller groups, such as mlx-4bit-g32, or GGUF",
        )
    if recipe.high_bits and all(tensor.quantization in (None, recipe.quantization) for tensor in tensors):
        raise ConversionError(
            f"{recipe.name} would give every tensor of {checkpoint.family.name} its lower number of bits",
            f"choose mlx-{recipe.quantization.bits if recipe.quantization else 4}bit, or a format with more bits",
        )
    return MlxPlan(recipe, tuple(tensors), tuple(fallbacks))


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in a safetensors file."""
    return math.prod(shape) * DTYPE_BYTES[dtype]


def _quantization_entry(quantization: MlxQuantization) -> dict[str, Any]:
    return {"group_size": quantization.group_size, "bits": quantization.bits, "mode": quantization.mode}


def _layer(layout: TensorLayout) -> int:
    """-1 outside the layers."""
    found = re.match(r"blk\.(\d+)\.", layout.gguf_name)
    return int(found[1]) if found else -1


def _file_order(layout: TensorLayout) -> tuple[int, str]:
    """llama.cpp's (`weight_name_comparer` in src/llama-model-loader.h)."""
    return _layer(layout), layout.gguf_name


def _quantization(checkpoint: Checkpoint, recipe: MlxRecipe, layout: TensorLayout) -> MlxQuantization | None:
    """What the recipe asks for; None for vectors and for routers, which are small and sensitive."""
    if recipe.quantization is None or recipe.budget is not None or len(layout.shape) < 2 or layout.is_float32_in_gguf:
        return None
    if recipe.high_bits is None:
        return recipe.quantization
    return replace(recipe.quantization, bits=_mixed_bits(checkpoint, recipe, layout))


def _mixed_bits(checkpoint: Checkpoint, recipe: MlxRecipe, layout: TensorLayout) -> int:
    """Bits of a tensor in a mix, as in llama.cpp's Q4_K_M (`llama_tensor_get_type_impl`).

    The high bits go to the output layer, which may be the embedding, and to the value and feed-forward-down
    matrices in every third layer and in the first and last eighth. One difference: a fused query-key-value matrix
    gets the low bits, where Q4_K_M raises it: a third of it or less are values.
    """
    assert recipe.quantization is not None and recipe.high_bits is not None
    config = checkpoint.config
    output = "token_embd.weight" if config.tied_embeddings else "output.weight"
    kind = layout.gguf_name.removesuffix(".weight").rpartition(".")[2]  # empty where GGUF has no such tensor
    is_raised = kind in ("attn_v", "ffn_down", "ffn_down_exps") and _gets_more_bits(_layer(layout), config.layer_count)
    return recipe.high_bits if is_raised or layout.gguf_name == output else recipe.quantization.bits


def _gets_more_bits(layer: int, layer_count: int) -> bool:
    """llama.cpp's `use_more_bits`."""
    eighth = layer_count // 8
    return layer < eighth or layer >= 7 * layer_count // 8 or (layer - eighth) % 3 == 2
