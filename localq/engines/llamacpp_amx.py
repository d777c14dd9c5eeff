"""Keeps llama.cpp from AMX, whose kernels end the process as compilers such as GCC 12 build them.

They drop the tile configuration (ggml-org/llama.cpp#26954). pip builds llama-cpp-python for the processor at hand, so a
machine with AMX gets them. llama.cpp's other ways of repacking weights for the processor are left on.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

_AMX = b"AMX"
"""What llama.cpp calls the buffers whose weights those kernels compute with."""


@functools.cache
def leave_amx_out(api: Any) -> None:
    """Take AMX from the list of buffer types that llama.cpp chooses from as it loads weights, where it is in it.

    `api` is `llama_cpp.llama_cpp` after `llama_backend_init`. Lasts as long as the process.
    """
    if b"AMX_INT8 = 1" not in api.llama_print_system_info():
        return
    from llama_cpp._ggml import libggml

    types = _extra_buffer_types(libggml)
    name_of = _function(libggml.ggml_backend_buft_name, ctypes.c_char_p, ctypes.c_void_p)
    count = next(index for index in range(2**31) if types[index] is None)
    others = [types[index] for index in range(count) if name_of(types[index]) != _AMX]
    # As long as before: the end of the list is wherever the first null pointer stands.
    for index, pointer in enumerate(others + [None] * (count - len(others))):
        types[index] = pointer


def _extra_buffer_types(libggml: Any) -> Any:
    """The list that `ggml_backend_dev_get_extra_bufts` gives for the CPU: pointers, ended by a null pointer.

    The very one that `llama_model_load_from_file` walks through.
    """
    cpu_type = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
    device = _function(libggml.ggml_backend_dev_by_type, ctypes.c_void_p, ctypes.c_int)(cpu_type)
    registry = _function(libggml.ggml_backend_dev_backend_reg, ctypes.c_void_p, ctypes.c_void_p)(device)
    find = _function(libggml.ggml_backend_reg_get_proc_address, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)
    get_types = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(
        find(registry, b"ggml_backend_dev_get_extra_bufts")
    )
    return get_types(device)


def _function(function: Any, result: Any, *arguments: Any) -> Any:
    function.restype, function.argtypes = result, arguments
    return function
