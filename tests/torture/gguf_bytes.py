"""A GGUF file taken apart and put together again with other keys: written from the format's description (gguf.md)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

STRING, ARRAY = 8, 9
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""By type number, for `struct`."""
_ALIGNMENT = 32


@dataclass(frozen=True)
class Value:
    """A value of a key: `item` is the type of an array's items."""

    kind: int
    content: Any
    item: int = 0


@dataclass(frozen=True)
class GgufBytes:
    """The three parts of a file."""

    values: Mapping[str, Value]
    tensors: tuple[tuple[str, tuple[int, ...], int, int], ...]
    """Name, shape, type and offset."""
    data: bytes

    def changed(self, **values: Value | None) -> GgufBytes:
        """With other values by key, in which `__` stands for a point; None takes a key out."""
        named = {key.replace("__", "."): value for key, value in values.items()}
        kept = {**self.values, **named}
        return replace(self, values={key: value for key, value in kept.items() if value is not None})

    def to_bytes(self) -> bytes:
        """The whole file."""
        parts = [b"GGUF", struct.pack("<IQQ", 3, len(self.tensors), len(self.values))]
        for key, value in self.values.items():
            parts += [_text(key.encode()), struct.pack("<I", value.kind), _content(value)]
        for name, shape, kind, offset in self.tensors:
            parts += [_text(name.encode()), struct.pack(f"<I{len(shape)}Q", len(shape), *shape)]
            parts.append(struct.pack("<IQ", kind, offset))
        header = b"".join(parts)
        return header + bytes(-len(header) % _ALIGNMENT) + self.data


def read(file: Path) -> GgufBytes:
    """Take a file apart."""
    reader = _Reader(file.read_bytes())
    reader.position = 8
    tensor_count, key_count = reader.number("Q"), reader.number("Q")
    values = {}
    for _ in range(key_count):
        key = reader.text().decode()
        values[key] = reader.value(reader.number("I"))
    tensors = []
    for _ in range(tensor_count):
        name = reader.text().decode()
        shape = tuple(reader.number("Q") for _ in range(reader.number("I")))
        tensors.append((name, shape, reader.number("I"), reader.number("Q")))
    start = -(-reader.position // _ALIGNMENT) * _ALIGNMENT
    return GgufBytes(values, tuple(tensors), reader.data[start:])


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def number(self, form: str) -> Any:
        (number,) = struct.unpack_from(f"<{form}", self.data, self.position)
        self.position += struct.calcsize(f"<{form}")
        return number

    def text(self) -> bytes:
        length = self.number("Q")
        self.position += length
        return self.data[self.position - length : self.position]

    def value(self, kind: int) -> Value:
        if kind != ARRAY:
            return Value(kind, self.text() if kind == STRING else self.number(FORMATS[kind]))
        item, length = self.number("I"), self.number("Q")
        read = self.text if item == STRING else lambda: self.number(FORMATS[item])
        return Value(kind, [read() for _ in range(length)], item)


def _text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def _content(value: Value) -> bytes:
    if value.kind == STRING:
        return _text(value.content)
    if value.kind != ARRAY:
        return struct.pack(f"<{FORMATS[value.kind]}", value.content)
    pack = _text if value.item == STRING else lambda item: struct.pack(f"<{FORMATS[value.item]}", item)
    return struct.pack("<IQ", value.item, len(value.content)) + b"".join(map(pack, value.content))
