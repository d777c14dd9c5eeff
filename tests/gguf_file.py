"""The tensors of a GGUF file as llama.cpp's own reader finds them: it knows types that the gguf package does not."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "gguf_get_n_tensors": (ctypes.c_int64, [ctypes.c_void_p]),
    "gguf_get_tensor_name": (ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_get_tensor_type": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_get_tensor_offset": (ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_get_tensor_size": (ctypes.c_size_t, [ctypes.c_void_p, ctypes.c_int64]),
    "gguf_get_data_offset": (ctypes.c_size_t, [ctypes.c_void_p]),
    "gguf_free": (None, [ctypes.c_void_p]),
    "ggml_type_name": (ctypes.c_char_p, [ctypes.c_int]),
}


class _Parameters(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def tensor_data(file: Path) -> dict[str, tuple[str, bytes]]:
    """Name -> (type, bytes), in file order."""
    from llama_cpp import _ggml

    libggml = ctypes.CDLL(_ggml.libggml._name)  # a handle of its own: signatures belong to the handle
    for name, (result, arguments) in _SIGNATURES.items():
        getattr(libggml, name).restype, getattr(libggml, name).argtypes = result, arguments
    libggml.gguf_init_from_file.restype = ctypes.c_void_p
    libggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, _Parameters]
    context = libggml.gguf_init_from_file(str(file).encode(), _Parameters(True, None))
    assert context, f"llama.cpp can't read {file}"
    content = file.read_bytes()
    start = libggml.gguf_get_data_offset(context)
    tensors = {}
    for number in range(libggml.gguf_get_n_tensors(context)):
        offset = start + libggml.gguf_get_tensor_offset(context, number)
        kind = libggml.ggml_type_name(libggml.gguf_get_tensor_type(context, number)).decode()
        data = content[offset : offset + libggml.gguf_get_tensor_size(context, number)]
        tensors[libggml.gguf_get_tensor_name(context, number).decode()] = (kind, data)
    libggml.gguf_free(context)
    return tensors
