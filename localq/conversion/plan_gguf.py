"""What a GGUF file will hold: the type, order and exact size of every tensor, and the header before the weights.

llama.cpp's own quantizer chooses the types. The metadata is the same for every format of a checkpoint except one
number, so it is made once. Format: ggml's docs/gguf.md, version 3.
"""

from __future__ import annotations

import math
import reprlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from localq.checkpoint.folder import Checkpoint
from localq.conversion import ggml
from localq.conversion.naming import add_naming
from localq.conversion.vocabulary import TokenizerFolder, add_vocabulary
from localq.disk import temporary_folder
from localq.errors import CheckpointError, ConversionError
from localq.families.base import FILE_TYPE, MetadataValue, TensorLayout
from localq.recipes import GgufRecipe
from localq.store.manifest import Fallback

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFValue, GGUFWriter
    from numpy.typing import NDArray

GGUF_ALIGNMENT_BYTES = 32
"""Every tensor of a GGUF file starts at a multiple of this (`GGUF_DEFAULT_ALIGNMENT`)."""

_UINT32, _STRING, _ARRAY = 4, 8, 9  # `enum gguf_type` in gguf.h
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FIXED = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of metadata pairs

_UNQUANTIZED = (0, 1, 32)  # file types that the converter itself writes: F32, F16, BF16
_BEFORE_TYPE = ".rope.scaling.attn_factor"  # the converter writes it with the tensors

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
        pairs = {**self.pairs, FILE_TYPE: _text(FILE_TYPE) + struct.pack("<II", _UINT32, number)}
        if number not in _UNQUANTIZED:
            pairs |= {key: pairs.pop(key) for key in ("general.quantization_version", FILE_TYPE)}
        return list(pairs.values())


@dataclass(frozen=True, slots=True)
class GgufPlan:
    """The tensors of one GGUF file, in file order."""

    recipe: GgufRecipe
    tensors: tuple[GgufTensor, ...]
    fallbacks: tuple[Fallback, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of tensor data, padding included."""
        return sum(padded(tensor.nbytes) for tensor in self.tensors)


def plan_gguf(checkpoint: Checkpoint, recipe: GgufRecipe) -> GgufPlan:
    """Types and order of the tensors, from a dry run of llama.cpp's quantizer on a file that has only a header.

    Raises ConversionError for what the quantizer refuses.
    """
    metadata = gguf_metadata(checkpoint, tokenizer=None)  # the quantizer reads no tokens
    unquantized = {tensor.name: tensor for tensor in _unquantized(checkpoint)}
    with temporary_folder() as folder:
        probe = folder / "probe.gguf"
        data = header(metadata, recipe.file_type_number, tuple(unquantized.values()))
        probe.write_bytes(data)
        with probe.open("r+b") as stream:  # a hole instead of weights: the dry run reads only the header
            stream.truncate(len(data) + sum(padded(tensor.nbytes) for tensor in unquantized.values()))
        planned = ggml.planned_types(probe, recipe.file_type_number)
    if planned.types.keys() != unquantized.keys():
        differing = sorted(planned.types.keys() ^ unquantized.keys())
        raise ConversionError(
            f"llama.cpp's plan does not cover the model's tensors: {', '.join(differing[:3])}",
            "localq can't read the log of this version of llama-cpp-python: please report the version",
        )
    names: Iterable[str] = planned.types
    if recipe.file_type_number in _UNQUANTIZED:
        names = sorted(names, key=lambda name: _converters_place(checkpoint, unquantized[name]))
    tensors = tuple(replace(unquantized[name], type_name=planned.types[name]) for name in names)
    fallbacks = tuple(Fallback(name, wanted, used) for name, (wanted, used) in planned.fallbacks.items())
    return GgufPlan(recipe, tensors, (*_silent_fallbacks(recipe, tensors), *fallbacks))


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
    return GgufMetadata({key: _pair(key, pair) for key, pair in writer.kv_data[0].items()})


def header(metadata: GgufMetadata, file_type_number: int, tensors: Sequence[GgufTensor]) -> bytes:
    """The bytes before the first tensor, padded to its alignment."""
    pairs = metadata.with_file_type(file_type_number)
    parts = [_FIXED.pack(b"GGUF", 3, len(tensors), len(pairs)), *pairs]
    offset = 0
    for tensor in tensors:
        sizes = tuple(reversed(tensor.shape))  # GGUF counts from the fastest dimension
        layout = f"<I{len(sizes)}QIQ"
        parts += [_text(tensor.name), struct.pack(layout, len(sizes), *sizes, tensor.type_number, offset)]
        offset += padded(tensor.nbytes)
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % GGUF_ALIGNMENT_BYTES)


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to GGUF's alignment."""
    return nbytes + -nbytes % GGUF_ALIGNMENT_BYTES


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
    file = checkpoint.tensor(tensor.layout).files[-1].name
    return file, max(tensor.layout.sources)


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


def _pair(key: str, pair: GGUFValue) -> bytes:
    try:
        return _text(key) + _packed(pair)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        value = reprlib.repr(pair.value)
        raise CheckpointError(
            f"a GGUF file can't hold {key} = {value}", "take config.json and the tokenizer from the model's page"
        ) from error


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def _packed(pair: GGUFValue) -> bytes:
    """Type and value. The gguf package's own packing takes a second for Llama 3's tokens."""
    from gguf import GGUFValueType

    kind = int(pair.type)
    if kind != _ARRAY:
        return struct.pack("<I", kind) + _elements(kind, [pair.value])
    element = int(pair.sub_type if pair.sub_type is not None else GGUFValueType.get_type(pair.value[0]))
    return struct.pack("<IIQ", _ARRAY, element, len(pair.value)) + _elements(element, pair.value)


def _elements(kind: int, values: Sequence[Any]) -> bytes:
    if kind == _STRING:
        return b"".join(map(_text, values))
    return struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)


def _add(writer: GGUFWriter, key: str, value: MetadataValue) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)
