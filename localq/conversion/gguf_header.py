"""What stands before the weights in a GGUF file: metadata with the vocabulary, and the table of tensors.

The metadata are the same for every form of a checkpoint but for one number, so they are made once. Format:
ggml's docs/gguf.md, version 3.
"""

from __future__ import annotations

import math
import reprlib
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.checkpoint.folder import Checkpoint
from localq.conversion import ggml
from localq.conversion.vocabulary import add_vocabulary, name_for_llama_cpp
from localq.errors import CheckpointError, ConversionError
from localq.families.base import TensorLayout

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFValue, GGUFWriter
    from numpy.typing import NDArray

GGUF_ALIGNMENT_BYTES = 32
"""Every tensor of a GGUF file starts at a multiple of this (`GGUF_DEFAULT_ALIGNMENT`)."""

_UINT32, _STRING, _ARRAY = 4, 8, 9  # `enum gguf_type` in gguf.h
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FIXED = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of metadata pairs


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
    """Metadata pairs as they stand in a file, all but `general.file_type`, in which forms differ."""

    count: int
    data: bytes


def gguf_metadata(checkpoint: Checkpoint, *, with_vocabulary: bool, pre_tokenizer: str | None = None) -> GgufMetadata:
    """Hyperparameters, and the tokenizer with its chat template and the name; without `general.file_type`.

    `pre_tokenizer` stands in for the tokenizer's own rule.

    Raises CheckpointError where the tokenizer can't be had as GGUF, UnsupportedModelError where llama.cpp does
    not run the family.
    """
    from gguf import GGML_QUANT_VERSION, GGUFWriter

    writer = GGUFWriter(None, checkpoint.family.gguf_architecture())
    writer.add_type("model")
    _add_hyperparameters(writer, checkpoint)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    if with_vocabulary:
        writer.add_name(name_for_llama_cpp(checkpoint.name.rpartition("/")[2], checkpoint.folder))
        add_vocabulary(writer, checkpoint.folder, checkpoint.config.vocabulary_size, pre_tokenizer)
    pairs = writer.kv_data[0]
    return GgufMetadata(len(pairs), b"".join(_pair(key, pair) for key, pair in pairs.items()))


def header(metadata: GgufMetadata, file_type_number: int, tensors: Sequence[GgufTensor]) -> bytes:
    """The beginning of a file, padded so that the first tensor may follow."""
    file_type = _text("general.file_type") + struct.pack("<II", _UINT32, file_type_number)
    parts = [_FIXED.pack(b"GGUF", 3, len(tensors), metadata.count + 1), metadata.data, file_type]
    offset = 0
    for tensor in tensors:
        sizes = tuple(reversed(tensor.shape))  # GGUF counts from the fastest dimension
        form = f"<I{len(sizes)}QIQ"
        parts += [_text(tensor.name), struct.pack(form, len(sizes), *sizes, tensor.type_number, offset)]
        offset += padded(tensor.nbytes)
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % GGUF_ALIGNMENT_BYTES)


def padded(nbytes: int) -> int:
    """`nbytes` up to GGUF's alignment."""
    return nbytes + -nbytes % GGUF_ALIGNMENT_BYTES


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Wrap no reading of the checkpoint whose errors are not translated yet: an OSError is blamed on this folder."""
    try:
        with tempfile.TemporaryDirectory(prefix="localq-plan-") as folder:
            yield Path(folder)
    except OSError as error:
        raise ConversionError(
            f"nothing can be written to the temporary folder: {error.strerror or error}",
            "make room there, or point TMPDIR to a folder that has some",
        ) from error


def _pair(key: str, pair: GGUFValue) -> bytes:
    try:
        return _text(key) + _packed(pair)
    except (struct.error, OverflowError, UnicodeEncodeError) as error:
        value = reprlib.repr(pair.value)
        raise CheckpointError(
            f"a GGUF file has no room for {key} = {value}", "take config.json and the tokenizer from the model's page"
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


def _add_hyperparameters(writer: GGUFWriter, checkpoint: Checkpoint) -> None:
    for key, value in checkpoint.family.gguf_metadata(checkpoint.config).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)
