"""Keys and values as they stand in the header of a GGUF file. Format: ggml's docs/gguf.md, version 3."""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from localq.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import GGUFValue

UINT32, STRING, _ARRAY = 4, 8, 9  # `enum gguf_type` in gguf.h
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def packed_pair(key: str, pair: GGUFValue) -> bytes:
    """A key with its type and value. Raises CheckpointError for a value that a GGUF file can't hold."""
    try:
        return packed_text(key) + _packed(pair)
    except (struct.error, OverflowError, UnicodeEncodeError, TypeError, LookupError) as error:
        value = reprlib.repr(pair.value)
        raise CheckpointError(
            f"a GGUF file can't hold {key} = {value}", "take config.json and the tokenizer from the model's page"
        ) from error


def packed_text(text: str | bytes) -> bytes:
    """Its length and its UTF-8."""
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
    if kind == STRING:
        return b"".join(map(packed_text, values))
    return struct.pack(f"<{len(values)}{_FORMATS[kind]}", *values)
