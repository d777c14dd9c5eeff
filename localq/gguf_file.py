"""The header of a GGUF file, read by ggml itself: metadata, sizes of the weights, parts of a split model.

Knows no tokenizer and loads no weights. The keys are those of ggml's `docs/gguf.md`; the names of the parts are
llama.cpp's (`llama_split_path`).
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from localq.errors import CheckpointError, ModelNotFoundError, shown
from localq.llama_log import captured_llama_log
from localq.regular_files import is_there
from localq.trial.gguf import require_openable as require_openable_parts

Value = str | int | float | bool | list[int]

PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
"""`name-00001-of-00003.gguf`: a part of a split model."""

_MOST_LAYERS = 4096  # arrays have a number per layer; longer ones are the vocabulary's, and are not read

_TOKENS, _VOCABULARY = b"tokenizer.ggml.tokens", b"tokenizer."

_ROTATION = "rope_"

_STRING, _ARRAY = 8, 9
_NUMBERS: dict[int, tuple[str, Any]] = {  # enum gguf_type: suffix of the function, type of the value
    0: ("u8", ctypes.c_uint8),
    1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16),
    3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32),
    5: ("i32", ctypes.c_int32),
    6: ("f32", ctypes.c_float),
    7: ("bool", ctypes.c_bool),
    10: ("u64", ctypes.c_uint64),
    11: ("i64", ctypes.c_int64),
    12: ("f64", ctypes.c_double),
}
_INTEGERS = frozenset(_NUMBERS) - {6, 7, 12}

_OTHER_KINDS = {
    "adapter": "a LoRA adapter, not a model",
    "imatrix": "an importance matrix, for quantizing, not a model",
    "mmproj": "the part of a model that reads pictures; the model itself is another file",
}
"""By `general.type`."""
_NO_CHAT_ARCHITECTURES = frozenset(("t5", "t5encoder", "dream", "llada", "llada-moe", "rnd1"))
"""Encoder-decoder and diffusion models: llama.cpp runs them, but they do not write one token after the other."""

_ALL_FLOAT32 = 0  # of `enum llama_ftype`


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where the values of a tensor are."""

    type_number: int
    """The value of `enum ggml_type`."""
    offset: int
    """Of the first byte, from the start of the file."""
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The header: everything before the weights."""

    path: Path
    metadata: Mapping[str, Value]
    """Numbers, truth values and texts by key, and arrays with a number per layer; nothing of the vocabulary."""
    tensor_bytes: Mapping[str, int]
    """Bytes of each tensor by its name, without padding."""
    file_bytes: int
    """The smallest size that the complete file can have."""
    vocabulary_size: int = 0
    """Tokens of the vocabulary; 0 where the file has none."""
    places: Mapping[str, TensorPlace] = field(default_factory=dict)
    """Of each tensor by its name."""
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Short lists of texts by key; nothing of the vocabulary."""
    parameters: int = 0
    """Numbers in all tensors but the factors of rotation, which llama.cpp's converter adds to those of the model."""
    tensor_types: Mapping[str, int] = field(default_factory=dict)
    """ggml's number for the type of each tensor."""

    @property
    def types(self) -> frozenset[str]:
        """Of the tensors, as ggml names them: `f32`, `q4_K`."""
        return frozenset(_library().ggml_type_name(kind).decode() for kind in self.tensor_types.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(self.tensor_bytes.values())

    @property
    def architecture(self) -> str:
        """As llama.cpp names it: `llama`, `qwen2`."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def is_float32(self) -> bool:
        """Whether all weights are float32, as the file states."""
        return self.metadata.get("general.file_type") == _ALL_FLOAT32

    def of_model(self, key: str) -> Value | None:
        """A value under the architecture's name: `of_model("block_count")` is that of `llama.block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str) -> int | None:
        """As `of_model`, for a whole number; None for every other value."""
        value = self.of_model(key)
        return value if isinstance(value, int) else None


def read_model_header(path: Path) -> GgufHeader:
    """The header of a model that generates text; of a split one the first part's, with the sizes of all parts together.

    Raises ModelNotFoundError where there is no file, CheckpointError for a file that is damaged, incomplete, not the
    first part, or not such a model.
    """
    header = read_header(path)
    _require_model(header)
    parts = [header, *(_read_tried(part) for part in _other_parts(header))]
    for part in parts:
        found_bytes = part.path.stat().st_size
        if found_bytes < part.file_bytes:
            raise CheckpointError(
                f"{part.path} is cut off: it has {found_bytes:,} of {part.file_bytes:,} bytes",
                "download the file again",
            )
    tensor_bytes = {name: nbytes for part in parts for name, nbytes in part.tensor_bytes.items()}
    if not tensor_bytes:
        raise CheckpointError(f"{path} has a vocabulary and no weights", "give the .gguf file of the model itself")
    tensor_types = {name: kind for part in parts for name, kind in part.tensor_types.items()}
    parameters = sum(part.parameters for part in parts)
    return replace(header, tensor_bytes=tensor_bytes, tensor_types=tensor_types, parameters=parameters)


def require_openable(path: Path) -> None:
    """Raise ModelFileError for a file that would end or block the process; `path` may be the first of several parts.

    Raises CheckpointError for what is no regular file. Does nothing where there is no file: whoever opens it says so.
    """
    if is_there(path):
        others = (path.with_name(name) for name in part_names(path.name) if name != path.name)
        require_openable_parts([path, *(part for part in others if part.is_file())])


def model_name(path: Path) -> str:
    """The name of a file's model: the file's name without the suffix and the number of the part."""
    match = PART_NAME.fullmatch(path.name)
    return match["stem"] if match else path.stem


def part_names(name: str) -> list[str]:
    """The names of all parts of a split model, `name` being one of them; for every other file its own name."""
    match = PART_NAME.fullmatch(name)
    if match is None:
        return [name]
    stem, count, suffix = match["stem"], match["count"], name[-len(".gguf") :]
    return [f"{stem}-{number:05d}-of-{count}{suffix}" for number in range(1, int(count) + 1)]


def read_header(path: Path) -> GgufHeader:
    """The header of one file, also of one that is not a model.

    Raises as `read_model_header`, and ModelFileError for a file that would end the process.
    """
    require_openable(path)
    if not path.is_file():
        raise ModelNotFoundError(f"no file {path}", "check the path; `localq ls` lists the models made so far")
    return _read_tried(path)


def _read_tried(path: Path) -> GgufHeader:
    library = _library()
    with captured_llama_log() as log:
        context = library.gguf_init_from_file(os.fsencode(path), _Parameters(no_alloc=True))
    if not context:
        said = [line.strip() for line in "".join(log).splitlines() if line.strip()]
        reason = said[0].partition(": ")[2] if said else "no reason given"
        hint = "download the file again, or make it again: `localq convert SOURCE --to FORMAT --force`"
        raise CheckpointError(f"{path} is damaged, or not a GGUF file: {reason}", hint)
    try:
        keys = {library.gguf_get_key(context, key): key for key in range(library.gguf_get_n_kv(context))}
        metadata = {name.decode(errors="replace"): _value(context, key) for name, key in keys.items()}
        texts = {name.decode(errors="replace"): _texts(context, name, key) for name, key in keys.items()}
        places = dict(_place(context, tensor) for tensor in range(library.gguf_get_n_tensors(context)))
        parameters = sum(
            place.nbytes // library.ggml_type_size(place.type_number) * library.ggml_blck_size(place.type_number)
            for name, place in places.items()
            if not name.startswith(_ROTATION)
        )
        tokens = library.gguf_find_key(context, _TOKENS)
        vocabulary_size = library.gguf_get_arr_n(context, tokens) if tokens >= 0 else 0
    finally:
        library.gguf_free(context)
    return GgufHeader(
        path,
        {name: value for name, value in metadata.items() if value is not None},
        {name: place.nbytes for name, place in places.items()},
        max((place.offset + place.nbytes for place in places.values()), default=0),
        vocabulary_size,
        places,
        {name: values for name, values in texts.items() if values is not None},
        parameters,
        {name: place.type_number for name, place in places.items()},
    )


def _require_model(header: GgufHeader) -> None:
    kind = str(header.metadata.get("general.type", "model"))
    kind = "mmproj" if header.architecture == "clip" else kind
    if kind != "model":
        what = _OTHER_KINDS.get(kind, f"of the type {shown(kind)!r}, not a model")
        raise CheckpointError(f"{header.path} is {what}", "give the .gguf file of the model itself")
    if header.of_model("attention.causal") is False or header.architecture in _NO_CHAT_ARCHITECTURES:
        raise CheckpointError(
            f"{header.path} is a model of the architecture {shown(header.architecture)}, "
            "which does not write text token by token",
            "localq runs only models that do; embeddings and translation need another program",
        )


def _other_parts(header: GgufHeader) -> list[Path]:
    """The parts after the first; raises CheckpointError where one is missing."""
    number, count = (header.metadata.get(f"split.{key}", 0) for key in ("no", "count"))
    if not isinstance(number, int) or not isinstance(count, int) or count < 2:
        return []
    path = header.path
    names = part_names(path.name)
    if len(names) != count or number >= count or names[number] != path.name:
        raise CheckpointError(
            f"{path} is part {number + 1} of {count} of a split model, and its name does not say so",
            f"rename it to NAME-{number + 1:05d}-of-{count:05d}.gguf, and the other parts in the same way",
        )
    if number > 0:
        raise CheckpointError(
            f"{path} is part {number + 1} of {count} of a split model", f"give its first part: {names[0]}"
        )
    for name in names[1:]:
        if not (path.parent / name).is_file():
            raise CheckpointError(
                f"{path.parent / name} is missing: the model is split into {count} files", "download that file too"
            )
    return [path.parent / name for name in names[1:]]


class _Parameters(ctypes.Structure):
    """`struct gguf_init_params`; with `no_alloc` and no context no weights are read."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _value(context: int, key: int) -> Value | None:
    library = _library()
    kind = library.gguf_get_kv_type(context, key)
    if kind == _STRING:
        text: bytes = library.gguf_get_val_str(context, key)
        return text.decode(errors="replace")
    if kind != _ARRAY:
        number: Value = getattr(library, f"gguf_get_val_{_NUMBERS[kind][0]}")(context, key)
        return number
    item, length = library.gguf_get_arr_type(context, key), library.gguf_get_arr_n(context, key)
    if item not in _INTEGERS or length > _MOST_LAYERS:
        return None
    data = ctypes.cast(library.gguf_get_arr_data(context, key), ctypes.POINTER(_NUMBERS[item][1]))
    return list(data[:length])


def _texts(context: int, name: bytes, key: int) -> tuple[str, ...] | None:
    library = _library()
    if library.gguf_get_kv_type(context, key) != _ARRAY or library.gguf_get_arr_type(context, key) != _STRING:
        return None
    length = library.gguf_get_arr_n(context, key)
    if length > _MOST_LAYERS or name.startswith(_VOCABULARY):
        return None
    return tuple(library.gguf_get_arr_str(context, key, index).decode(errors="replace") for index in range(length))


def _place(context: int, tensor: int) -> tuple[str, TensorPlace]:
    library = _library()
    offset = library.gguf_get_data_offset(context) + library.gguf_get_tensor_offset(context, tensor)
    kind, nbytes = library.gguf_get_tensor_type(context, tensor), library.gguf_get_tensor_size(context, tensor)
    return library.gguf_get_tensor_name(context, tensor).decode(errors="replace"), TensorPlace(kind, offset, nbytes)


@cache
def _library() -> Any:
    # The library that llama_cpp has loaded already; its handle finds the symbols of libggml-base too.
    from llama_cpp._ggml import libggml

    pointer, index = ctypes.c_void_p, ctypes.c_int64
    results: dict[str, Any] = {
        "gguf_get_key": ctypes.c_char_p,
        "gguf_get_kv_type": ctypes.c_int,
        "gguf_get_arr_type": ctypes.c_int,
        "gguf_get_arr_n": ctypes.c_size_t,
        "gguf_get_arr_data": pointer,
        "gguf_get_val_str": ctypes.c_char_p,
        "gguf_get_tensor_name": ctypes.c_char_p,
        "gguf_get_tensor_type": ctypes.c_int,
        "gguf_get_tensor_size": ctypes.c_size_t,
        "gguf_get_tensor_offset": ctypes.c_size_t,
        **{f"gguf_get_val_{suffix}": kind for suffix, kind in _NUMBERS.values()},
    }
    for name, result in results.items():
        getattr(libggml, name).restype, getattr(libggml, name).argtypes = result, [pointer, index]
    for name, result in {"n_kv": index, "n_tensors": index, "data_offset": ctypes.c_size_t}.items():
        getter = getattr(libggml, f"gguf_get_{name}")
        getter.restype, getter.argtypes = result, [pointer]
    libggml.gguf_get_arr_str.restype, libggml.gguf_get_arr_str.argtypes = (
        ctypes.c_char_p,
        [pointer, index, ctypes.c_size_t],
    )
    libggml.ggml_type_size.restype, libggml.ggml_type_size.argtypes = ctypes.c_size_t, [ctypes.c_int]
    libggml.ggml_type_name.restype, libggml.ggml_type_name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    libggml.ggml_blck_size.restype, libggml.ggml_blck_size.argtypes = index, [ctypes.c_int]
    libggml.gguf_find_key.restype, libggml.gguf_find_key.argtypes = index, [pointer, ctypes.c_char_p]
    libggml.gguf_free.restype, libggml.gguf_free.argtypes = None, [pointer]
    libggml.gguf_init_from_file.restype = pointer
    libggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, _Parameters]
    return libggml
