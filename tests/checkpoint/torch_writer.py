"""Archives as `torch.save` writes them, opcode by opcode, without PyTorch: correct ones, and others."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.tiny_checkpoints import encode

ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
STORAGES = {"F32": "FloatStorage", "F16": "HalfStorage", "BF16": "BFloat16Storage"}


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + len(raw).to_bytes(4, "little") + raw


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def numbers(*values: int) -> bytes:
    return tuple_of(*map(number, values))


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


def storage(count: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    return tuple_of(text("storage"), name("torch", kind), text(key), text("cpu"), number(count)) + b"Q"


def tensor(where: bytes, first: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, where, number(first), numbers(*shape), numbers(*strides), b"\x89", ORDERED_DICT)


def dict_of(entries: Mapping[str, bytes]) -> bytes:
    """A whole pickle, protocol 2, with the `_metadata` of a state dict."""
    items = b"".join(text(key) + value for key, value in entries.items())
    metadata = b"}" + text("_metadata") + ORDERED_DICT + b"sb"
    return b"\x80\x02" + ORDERED_DICT + b"(" + items + b"u" + metadata + b"."


def write_archive(file: Path, pickled: bytes, storages: Mapping[str, bytes], others: Mapping[str, bytes] = {}) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for entry, content in {"byteorder": b"little", **others}.items():
            archive.writestr(f"archive/{entry}", content)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return file


def write_torch_archive(
    file: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32", *, transposed: bool = False
) -> None:
    """A state dict of float32 values that are stored as `dtype`; matrices column after column where `transposed`."""
    entries, storages = {}, {}
    for key, values in tensors.items():
        stored = np.ascontiguousarray(values.T if transposed else values)
        strides = tuple(stride // stored.itemsize for stride in stored.strides)
        where = storage(values.size, str(len(storages)), STORAGES[dtype])
        entries[key] = tensor(where, 0, values.shape, strides[::-1] if transposed else strides)
        storages[str(len(storages))] = encode(stored, dtype)
    write_archive(file, dict_of(entries), storages)
