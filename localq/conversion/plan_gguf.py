"""What a GGUF file will hold: the type, order and exact size of every tensor, and the header before the weights.

llama.cpp's own quantizer chooses the types. The metadata is the same for every format of a checkpoint except one
number, so it is made once. Format: ggml's docs/gguf.md, version 3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from localq.checkpoint.folder import Checkpoint
from localq.conversion import ggml
from localq.conversion.gguf_pairs import UINT32, packed_pair, packed_text
from localq.conversion.naming import add_naming
from localq.conversion.vocabulary import TokenizerFolder, add_vocabulary
from localq.disk import temporary_folder
from localq.errors import ConversionError
from localq.families.base import FILE_TYPE, MetadataValue, TensorLayout
from localq.recipes import GgufRecipe
from localq.store.manifest import Fallback

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from numpy.typing import NDArray

    from localq.conversion.importance import Importance

GGUF_ALIGNMENT_BYTES = 32
"""Every tensor of a GGUF file starts at a multiple of this (`GGUF_DEFAULT_ALIGNMENT`)."""

_FIXED = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of metadata pairs

_UNQUANTIZED = (0, 1, 32)  # file types that the converter itself writes: F32, F16, BF16
_BEFORE_TYPE = ".rope.scaling.attn_factor"  # the converter writes it with the tensors
_F16_FILE_TYPE = 1
_FILE_TYPES_BY_BITS = {2.06: 19, 2.63: 10, 3.44: 12, 4.5: 15, 5.5: 17, 6.56: 18, 8.5: 7}
"""Bits per weight of IQ2_XXS, Q2_K, Q3_K_M, Q4_K_M, Q5_K_M, Q6_K and Q8_0's main types -> `enum llama_ftype`."""

_OUTPUT_NAMES = ("output.weight", "token_embd.weight")
_K_BLOCK = 256  # weights per block of the types that have a fallback


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
    def experts(self) -> int:
        """Matrices in the tensor: more than one where it holds all experts of a layer."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def type_number(self) -> int:
        return ggml.type_number(self.type_name)

    @property
    def nbytes(self) -> int:
        return self.rows * ggml.row_bytes(self.type_number, self.columns)


@dataclass(frozen=True, slots=True)
class GgufMetadata:
    """The bytes of all metadata pairs by key, in the order of llama.cpp's converter; `general.file_type` is empty."""

    pairs: dict[str, bytes]

    def with_file_type(self, number: int) -> list[bytes]:
        """All pairs for one format. llama.cpp's quantizer moves two of them to the end."""
        pairs = {**self.pairs, FILE_TYPE: packed_text(FILE_TYPE) + struct.pack("<II", UINT32, number)}
        if number not in _UNQUANTIZED:
            pairs |= {key: pairs.pop(key) for key in ("general.quantization_version", FILE_TYPE)}
        return list(pairs.values())


@dataclass(frozen=True, slots=True)
class GgufPlan:
    """The tensors of one GGUF file, in file order."""

    recipe: GgufRecipe
    tensors: tuple[GgufTensor, ...]
    fallbacks: tuple[Fallback, ...] = ()
    importance: Importance | None = None
    """What a calibrated format is quantized with."""
    predicted_kl_divergence: float | None = None
    """Mean, in nats, that the types are predicted to cost; None without a calibration, or with types that it lacks."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of tensor data, padding included."""
        return sum(padded(tensor.nbytes) for tensor in self.tensors)

    @property
    def file_type_number(self) -> int:
        """What the file states. Under a budget none is exact: it is that of the nearest size, which runtimes show."""
        if self.recipe.budget is None:
            return self.recipe.file_type_number
        bits = 8 * self.weight_bytes / sum(tensor.rows * tensor.columns for tensor in self.tensors)
        return _FILE_TYPES_BY_BITS[min(_FILE_TYPES_BY_BITS, key=lambda size: abs(size - bits))]

    def header(self, metadata: GgufMetadata) -> bytes:
        """The bytes before the first tensor."""
        more = self.importance.metadata() if self.importance else []
        return header(metadata, self.file_type_number, self.tensors, more)


def plan_gguf(checkpoint: Checkpoint, recipe: GgufRecipe, importance: Importance | None = None) -> GgufPlan:
    """Types and order of the tensors, from a dry run of llama.cpp's quantizer on a file that has only a header.

    A calibrated format without `importance` is planned as with one, and can't be made. Under a budget nothing is
    quantized yet: `localq.conversion.budgets` chooses the types. Raises ConversionError for what the quantizer refuses.
    """
    metadata = gguf_metadata(checkpoint, tokenizer=None)  # the quantizer reads no tokens
    file_type_number = recipe.file_type_number if recipe.budget is None else _F16_FILE_TYPE
    unquantized = {tensor.name: tensor for tensor in _unquantized(checkpoint)}
    with temporary_folder() as folder:
        probe = folder / "probe.gguf"
        data = header(metadata, file_type_number, tuple(unquantized.values()))
        probe.write_bytes(data)
        with probe.open("r+b") as stream:  # a hole instead of weights: the dry run reads only the header
            stream.truncate(len(data) + sum(padded(tensor.nbytes) for tensor in unquantized.values()))
        planned = ggml.planned_types(probe, file_type_number, _weights(recipe, importance))
    if planned.types.keys() != unquantized.keys():
        differing = sorted(planned.types.keys() ^ unquantized.keys())
        raise ConversionError(
            f"llama.cpp's plan does not cover the model's tensors: {', '.join(differing[:3])}",
            "localq can't read the log of this version of llama-cpp-python: please report the version",
        )
    names: Iterable[str] = planned.types
    if recipe.budget is not None:
        return GgufPlan(recipe, tuple(unquantized[name] for name in names), importance=importance)
    if recipe.file_type_number in _UNQUANTIZED:
        names = sorted(names, key=lambda name: _converters_place(checkpoint, unquantized[name]))
    tensors = tuple(replace(unquantized[name], type_name=planned.types[name]) for name in names)
    fallbacks = tuple(Fallback(name, wanted, used) for name, (wanted, used) in planned.fallbacks.items())
    return GgufPlan(recipe, tensors, (*_silent_fallbacks(recipe, tensors), *fallbacks), importance)


def gguf_metadata(
    checkpoint: Checkpoint, tokenizer: TokenizerFolder | None, pre_tokenizer: str | None = None
) -> GgufMetadata:
    """Hyperparameters, and where a `tokenizer` is given its vocabulary, the chat template and the model's name.

    `pre_tokenizer` replaces the tokenizer's own rule. Raises CheckpointError where GGUF can't hold the tokenizer,
    UnsupportedModelError where llama.cpp does not run the family.
    """
    from gguf import GGML_QUANT_VERSION, GGUFWriter

    writer = GGUFWriter(None, checkpoint.family.gguf_architecture())
    hyperparameters = checkpoint.family.gguf_metadata(checkpoint.config)
    for key in [key for key in hyperparameters if key.endswith(_BEFORE_TYPE)]:
        _add(writer, key, hyperparameters.pop(key))
    writer.add_type("model")
    if tokenizer is not None:
        add_naming(writer, checkpoint, tokenizer)
    for key, value in hyperparameters.items():
        _add(writer, key, value)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    if tokenizer is not None:
        add_vocabulary(writer, tokenizer, checkpoint.config.vocabulary_size, pre_tokenizer)
    return GgufMetadata({key: packed_pair(key, pair) for key, pair in writer.kv_data[0].items()})


def header(
    metadata: GgufMetadata, file_type_number: int, tensors: Sequence[GgufTensor], more: Sequence[bytes] = ()
) -> bytes:
    """The bytes before the first tensor, padded to its alignment; `more` are pairs of this format alone."""
    pairs = [*metadata.with_file_type(file_type_number), *more]
    parts = [_FIXED.pack(b"GGUF", 3, len(tensors), len(pairs)), *pairs]
    offset = 0
    for tensor in tensors:
        sizes = tuple(reversed(tensor.shape))  # GGUF counts from the fastest dimension
        layout = f"<I{len(sizes)}QIQ"
        parts += [packed_text(tensor.name), struct.pack(layout, len(sizes), *sizes, tensor.type_number, offset)]
        offset += padded(tensor.nbytes)
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % GGUF_ALIGNMENT_BYTES)


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to GGUF's alignment."""
    return nbytes + -nbytes % GGUF_ALIGNMENT_BYTES


def _weights(recipe: GgufRecipe, importance: Importance | None) -> Mapping[str, NDArray[np.float32]] | None:
    import numpy as np

    if importance is not None:
        return importance.by_name()
    # That there is a matrix changes the plan; what is in it does not.
    return {"any": np.ones(1, np.float32)} if recipe.calibrated else None


def _unquantized(checkpoint: Checkpoint) -> list[GgufTensor]:
    tensors = []
    for layout in checkpoint.layouts:
        # llama.cpp keeps vectors in single precision whatever the file type.
        is_single = len(layout.shape) < 2 or layout.is_float32_in_gguf
        type_name = "f32" if is_single else checkpoint.tensor(layout).dtype.lower()
        tensors.append(GgufTensor(layout.gguf_name, layout.shape, type_name, layout=layout))
    for name, values in checkpoint.family.gguf_extra_tensors(checkpoint.config).items():
        tensors.append(GgufTensor(name, values.shape, "f32", values=values))
    return tensors


def _converters_place(checkpoint: Checkpoint, tensor: GgufTensor) -> tuple[str, str]:
    """Sorts tensors as llama.cpp's converter writes them: computed ones, then by file and by name within it.

    The quantizer has another order.
    """
    if tensor.layout is None:
        return "", ""
    files = checkpoint.tensor(tensor.layout).files  # none where only shapes are known
    return files[-1].name if files else "", max(tensor.layout.sources)


def _silent_fallbacks(recipe: GgufRecipe, tensors: tuple[GgufTensor, ...]) -> list[Fallback]:
    """The output layer becomes Q8_0 where its rows fit no K-quant; the quantizer does not log this.

    Source: `llama_tensor_get_type_impl` in llama.cpp's src/llama-quant.cpp.
    """
    if recipe.file_type in ("Q8_0", "MXFP4_MOE"):
        return []
    return [
        Fallback(tensor.name, "q6_K", "q8_0")
        for tensor in tensors
        if tensor.name in _OUTPUT_NAMES and tensor.type_name == "q8_0" and tensor.columns % _K_BLOCK
    ]


def _add(writer: GGUFWriter, key: str, value: MetadataValue) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)
