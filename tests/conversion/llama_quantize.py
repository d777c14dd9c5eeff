"""llama.cpp's own quantizer, which `llama-quantize` calls."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def quantize(
    source: Path, target: Path, file_type_number: int, importance: Mapping[str, NDArray[np.float32]] | None = None
) -> str:
    """Why it refused; empty where it made the file. `importance` is what `--imatrix` gives it."""
    from llama_cpp import llama_cpp

    from localq.llama_log import captured_llama_log

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type_number
    if importance is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for number, (name, weights) in enumerate(importance.items()):
            assert weights.flags.c_contiguous and weights.dtype == np.float32
            address = weights.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
            entries[number] = llama_cpp.llama_model_imatrix_data(name.encode(), address, weights.size)
        parameters.imatrix = entries
    with captured_llama_log() as log:
        status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    return "" if status == 0 else "".join(log)
