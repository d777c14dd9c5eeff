"""What a GGUF header must not say: values on which llama.cpp ends or blocks the process, refused by name.

Read without ggml, which ends the process on some headers as well. What can't be read here is left to ggml's own
reader, in the child process first. The limits are llama.cpp's own assertions (llama-model.cpp, llama-vocab.cpp,
gguf.cpp) unless a comment says otherwise.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localq.errors import ModelFileError, shown
from localq.regular_files import open_regular

_MOST_HEADER_BYTES = 32 << 20
_MOST_KEYS, _MOST_TENSORS = 65_536, 100_000
"""No model has a tenth of them."""
_MOST_LAYERS, _MOST_EXPERTS = 512, 1024
"""LLAMA_MAX_LAYERS and LLAMA_MAX_EXPERTS."""

_STRING, _ARRAY = 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""By enum gguf_type, for `struct`."""
_TOKENS = "tokenizer.ggml.tokens"
_HINT = "download the file again, or take another file of the model"


@dataclass(frozen=True, slots=True)
class Header:
    """Keys and tensor names as they stand in the file; of an array of texts only that of the vocabulary."""

    values: Mapping[str, Any]
    tensors: frozenset[str]

    def of_model(self, key: str, default: Any = None) -> Any:
        """A value under the architecture's name."""
        return self.values.get(f"{self.values.get('general.architecture', '')}.{key}", default)

    def numbers(self, key: str) -> list[Any]:
        """As `of_model`: one number for all layers, or one for each; empty for every other value."""
        value = self.of_model(key)
        items = value if isinstance(value, list) else [value]
        return [item for item in items if isinstance(item, int | float)]

    def has_attention(self, layer: int) -> bool:
        """Whether a layer has the weights of keys that `head_count_kv` counts."""
        return any(f"blk.{layer}.{name}.weight" in self.tensors for name in ("attn_k", "attn_qkv"))


def check_header(file: Path) -> None:
    """Raise ModelFileError that names the first key with a value of which it is known that it can't be opened."""
    with open_regular(file) as stream:
        data = stream.read(_MOST_HEADER_BYTES)
    if len(data) >= 24 and data.startswith(b"GGUF"):
        tensors, keys = struct.unpack_from("<QQ", data, 8)
        for what, count, most in (("tensors", tensors, _MOST_TENSORS), ("keys", keys, _MOST_KEYS)):
            if count > most:
                raise ModelFileError(f"{file} says that it has {count:,} {what}; no model has so many", _HINT)
    try:
        header = _Reader(data).header()
    except (struct.error, IndexError, KeyError, ValueError, OverflowError):
        return
    for key, value, why in _faults(header):
        raise ModelFileError(f"{file} can't be opened: {shown(key)} is {shown(value)}{why}", _HINT)


Fault = tuple[str, object, str]
"""A key, its value, and what it must be."""


def _faults(header: Header) -> Iterator[Fault]:
    if "" in header.values:
        yield "a key", "''", "; it needs a name"
    alignment = header.values.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):  # below 8 tensors are misaligned
        yield "general.alignment", alignment, ", not a power of two from 8 on"
    architecture = header.values.get("general.architecture", "")
    for key, is_right, why in _RULES:
        for number in header.numbers(key):
            if not is_right(number, header):
                yield f"{architecture}.{key}", number, f": {why}"
    scaling = header.of_model("rope.scaling.type", "none")
    if isinstance(scaling, str) and scaling not in ("none", "linear", "yarn", "longrope"):
        yield f"{architecture}.rope.scaling.type", scaling, ", which llama.cpp does not know"
    if header.values.get("tokenizer.ggml.model") == "llama" and "tokenizer.ggml.scores" not in header.values:
        yield "tokenizer.ggml.model", "llama", ", and there are no tokenizer.ggml.scores"
    yield from _head_faults(header)
    yield from _token_faults(header.values.get(_TOKENS))


def _experts(header: Header) -> int:
    return max(header.numbers("expert_count"), default=0)


def _may_have_experts(header: Header) -> bool:
    """Whether there are weights of experts. Hunyuan's dense models state one expert and have none."""
    named = any("_exps." in name or "ffn_gate_inp" in name for name in header.tensors)
    return named or (_experts(header) == 1 and str(header.values.get("general.architecture")).startswith("hunyuan"))


def _key_length(header: Header) -> float:
    """Numbers per head; infinite where nothing says it."""
    heads, width = max(header.numbers("attention.head_count"), default=0), header.of_model("embedding_length")
    stated = header.of_model("attention.key_length")
    if isinstance(stated, int):
        return stated
    return width // heads if isinstance(width, int) and heads else math.inf


_Rule = tuple[str, Callable[[Any, Header], bool], str]
_RULES: tuple[_Rule, ...] = (
    ("block_count", lambda n, _: 1 <= n <= _MOST_LAYERS, f"a model has 1 to {_MOST_LAYERS} layers"),
    ("nextn_predict_layers", lambda n, h: n <= max(h.numbers("block_count"), default=0), "more than block_count"),
    ("expert_count", lambda n, _: n <= _MOST_EXPERTS, f"llama.cpp takes at most {_MOST_EXPERTS}"),
    ("expert_count", lambda n, h: n == 0 or _may_have_experts(h), "the file has no experts"),
    ("expert_count", lambda n, h: n < 2 or any(h.numbers("expert_used_count")), "expert_used_count is 0"),
    ("expert_used_count", lambda n, h: n <= _experts(h), "more than expert_count"),
    ("expert_group_count", lambda n, h: n < max(_experts(h), 1), "must be less than expert_count"),
    ("expert_group_count", lambda n, h: n < 2 or _experts(h) % n == 0, "must divide expert_count"),
    (
        "expert_group_count",
        lambda n, h: n < 2 or 0 < max(h.numbers("expert_group_used_count"), default=0) < n,
        "expert_group_used_count must be less, and not 0",
    ),
    ("attention.layer_norm_rms_epsilon", lambda n, _: 0 <= n < math.inf, "must be a small positive number"),
    ("attention.layer_norm_epsilon", lambda n, _: 0 <= n < math.inf, "must be a small positive number"),
    ("attention.group_norm_epsilon", lambda n, _: 0 <= n < math.inf, "must be a small positive number"),
    ("attention.key_length", lambda n, h: n > 0 or not h.has_attention(0), "must be at least 1"),
    ("attention.value_length", lambda n, h: n > 0 or not h.has_attention(0), "must be at least 1"),
    ("rope.dimension_count", lambda n, h: n > 0 or not h.has_attention(0), "must be at least 2"),
    ("rope.dimension_count", lambda n, _: n % 2 == 0, "must be even"),
    ("rope.dimension_count", lambda n, h: n <= _key_length(h) or not h.has_attention(0), "more than a head has"),
)
"""Key, what its number must fulfil, and why."""


def _head_faults(header: Header) -> Iterator[Fault]:
    """A layer with attention and no heads: llama.cpp divides by zero, or does not come to an end."""
    for key in ("attention.head_count", "attention.head_count_kv"):
        numbers = header.numbers(key)
        count = header.of_model("block_count")
        layers = numbers if len(numbers) > 1 else numbers * (min(count, _MOST_LAYERS) if type(count) is int else 1)
        for layer, number in enumerate(layers[:_MOST_LAYERS]):
            if number < 1 and header.has_attention(layer):
                yield f"{header.values.get('general.architecture', '')}.{key}", number, f" in layer {layer}"


def _token_faults(tokens: object) -> Iterator[Fault]:
    """Two tokens of the same text, which llama.cpp reads up to the first zero byte."""
    seen: dict[bytes, int] = {}
    if not isinstance(tokens, list):
        return
    for number, token in enumerate(tokens):
        text = token.partition(b"\0")[0]
        if text and text in seen:
            quoted, zero = repr(text.decode(errors="replace")), b"\0" in token + tokens[seen[text]]
            yield f"token {number}", quoted, f" as token {seen[text]}" + " up to a zero byte" * zero
        seen[text] = number


class _Reader:
    """Reads from the start of a file on; raises struct.error, IndexError, KeyError or ValueError where it ends."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def header(self) -> Header:
        if self._data[:4] != b"GGUF" or self._number("I", 4) not in (2, 3):
            raise ValueError("not GGUF as it is written today")
        tensors, keys = self._number("Q"), self._number("Q")
        values = {}
        for _ in range(keys):
            key = self._text().decode(errors="replace")
            values[key] = self._value(key, self._number("I"))
        names = set()
        for _ in range(tensors):
            names.add(self._text().decode(errors="replace"))
            dimensions = self._number("I")
            self._position += 8 * dimensions + 12  # the shape; type and offset
        return Header(values, frozenset(names))

    def _number(self, form: str, skipped: int = 0) -> Any:
        self._position += skipped
        (number,) = struct.unpack_from(f"<{form}", self._data, self._position)
        self._position += struct.calcsize(f"<{form}")
        return number

    def _text(self) -> bytes:
        length = self._number("Q")
        start, self._position = self._position, self._position + length
        if self._position > len(self._data):
            raise ValueError("the text does not end")
        return self._data[start : self._position]

    def _value(self, key: str, kind: int) -> Any:
        if kind == _STRING:
            return self._text().decode(errors="replace")
        if kind != _ARRAY:
            return self._number(_FORMATS[kind])
        item, length = self._number("I"), self._number("Q")
        if item == _STRING:
            if length > len(self._data):
                raise ValueError("the array does not end")
            texts = [self._text() for _ in range(length)]
            return texts if key == _TOKENS else None
        size = struct.calcsize(f"<{_FORMATS[item]}") * length
        start, self._position = self._position, self._position + size
        if length > _MOST_LAYERS:
            return None
        return list(struct.unpack_from(f"<{length}{_FORMATS[item]}", self._data, start))
