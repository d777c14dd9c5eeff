"""llama.cpp's own quantizer, called in the library that llama-cpp-python brings.

GGUF conversion uses two functions. `ggml_quantize_chunk` quantizes any range of rows to bytes identical to
those of `llama-quantize`, without the GIL. `llama_model_quantize` with `dry_run` reads only a file's header
and logs the type that each tensor would get: so localq has no copy of llama.cpp's mixes.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.errors import ConversionError
from localq.llama_log import captured_llama_log

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# [   1/  20]  blk.0.ffn_up.weight - [ 256, 512, 1, 1], type = bf16, size = 0.25 MiB -> 0.07 MiB (q4_K)
_PLAN_LINE = re.compile(
    r"\[ *\d+/ *\d+\] +(?P<name>\S+) +- \[[^\]]*\], type = +(?P<source>\w+), "
    r"size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((?P<target>\w+)\))?"
)

# warning: blk.0.ffn_down.weight - ncols  544 not divisible by 256 (required for type  q6_K) -> falling back to  q8_0
_FALLBACK_LINE = re.compile(
    r"warning: (?P<name>\S+) +- ncols +\d+ not divisible by +\d+ \(required for type +(?P<wanted>\w+)\)"
    r"[^\n]*?-> falling back to +(?P<used>\w+)"
)


class _TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` in ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("from_float_ref", ctypes.c_void_p),
    )


@cache
def _library() -> Any:
    # The library that llama_cpp has loaded: a second copy would have its own tables.
    from llama_cpp._ggml import libggml

    # libggml is linked to libggml-base, so its handle finds those symbols too.
    libggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    libggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    libggml.ggml_type_name.restype = ctypes.c_char_p
    libggml.ggml_type_name.argtypes = [ctypes.c_int]
    libggml.ggml_row_size.restype = ctypes.c_size_t
    libggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    libggml.ggml_blck_size.restype = ctypes.c_int64
    libggml.ggml_blck_size.argtypes = [ctypes.c_int]
    libggml.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    libggml.ggml_get_type_traits.argtypes = [ctypes.c_int]
    return libggml


def library_files() -> list[Path]:
    """ggml's shared libraries."""
    return sorted(Path(_library()._name).parent.glob("*ggml*"))


def quantize_chunk_address() -> ctypes.c_void_p:
    """Of the function `ggml_quantize_chunk`, for C code that calls it."""
    return ctypes.cast(_library().ggml_quantize_chunk, ctypes.c_void_p)


@cache
def _type_numbers() -> dict[str, int]:
    """The library's own table: the gguf package may lack types that llama.cpp writes."""
    from llama_cpp.llama_cpp import GGML_TYPE_COUNT

    names = {number: _library().ggml_type_name(number) for number in range(GGML_TYPE_COUNT)}
    return {name.decode(): number for number, name in names.items() if name}


def type_number(name: str) -> int:
    """The value in `enum ggml_type` of a type by ggml's own name, such as `q4_K`."""
    return _type_numbers()[name]


def row_bytes(ggml_type: int, columns: int) -> int:
    """Bytes of one row of `columns` weights."""
    return int(_library().ggml_row_size(ggml_type, columns))


def block_weights(ggml_type: int) -> int:
    """Weights in a block of the type."""
    return int(_library().ggml_blck_size(ggml_type))


def quantize_rows(
    ggml_type: int, values: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Quantize (rows, columns) of float32 to the bytes of a GGUF file, shape (rows, bytes per row).

    `importance` is a row of an importance matrix, shape (columns,).
    Source of the calling convention: `ggml_quantize_chunk` in ggml.h.
    """
    import numpy as np

    rows, columns = values.shape
    values = np.ascontiguousarray(values)
    result = np.empty((rows, row_bytes(ggml_type, columns)), dtype=np.uint8)
    weights = None if importance is None else importance.ctypes.data
    written = _library().ggml_quantize_chunk(
        ggml_type, values.ctypes.data, result.ctypes.data, 0, rows, columns, weights
    )
    if written != result.nbytes:
        raise ConversionError(f"ggml wrote {written} bytes instead of {result.nbytes}")
    return result


def dequantize_rows(ggml_type: int, rows: NDArray[np.uint8], columns: int) -> NDArray[np.float32]:
    """The values of quantized rows as `quantize_rows` gives them, shape (rows, columns)."""
    import numpy as np

    values = np.empty((len(rows), columns), dtype=np.float32)
    rows = np.ascontiguousarray(rows)
    traits = _library().ggml_get_type_traits(ggml_type).contents
    traits.to_float(rows.ctypes.data, values.ctypes.data, values.size)
    return values


@dataclass(frozen=True, slots=True)
class PlannedTypes:
    """The types that llama.cpp's quantizer would choose, by ggml's names."""

    types: dict[str, str]
    """By tensor, in file order."""
    fallbacks: dict[str, tuple[str, str]]
    """Tensor -> (type of the file type, type that the tensor gets)."""


def planned_types(
    header_file: Path, file_type_number: int, importance: Mapping[str, NDArray[np.float32]] | None = None
) -> PlannedTypes:
    """Which type llama.cpp's quantizer would give each tensor of a file.

    `header_file` needs a complete header; its data section may be a hole. `importance` has the weights of an importance
    matrix by tensor: with one, some file types give other types. Raises ConversionError when the quantizer refuses the
    file.
    """
    from llama_cpp import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = file_type_number
    parameters.dry_run = True
    if importance is not None:
        parameters.imatrix = _imatrix(importance)
    with captured_llama_log() as log:
        status = llama_cpp.llama_model_quantize(str(header_file).encode(), b"", ctypes.byref(parameters))
    text = "".join(log)
    if status != 0:
        reason = _last_line(text).rpartition("failed to quantize: ")[2]
        raise ConversionError(f"llama.cpp's quantizer refuses the model: {reason}", "choose another format")
    return PlannedTypes(
        {line["name"]: line["target"] or line["source"] for line in _PLAN_LINE.finditer(text)},
        {line["name"]: (line["wanted"], line["used"]) for line in _FALLBACK_LINE.finditer(text)},
    )


def _imatrix(importance: Mapping[str, NDArray[np.float32]]) -> Any:
    """For `llama_model_quantize_params`: ended by an entry without a name."""
    from llama_cpp import llama_cpp

    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, weights) in zip(entries, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), weights.size
        entry.data = weights.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return entries


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it gave no reason"
