"""A GGUF file as a model and a context of llama.cpp, ready to compute. Knows nothing of generation."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localq.errors import EngineError, LocalqError, UnsupportedOptionError
from localq.gguf_file import read_header, read_model_header
from localq.hardware import available_cores
from localq.llama_log import captured_llama_log
from localq.options import LoadOptions

_NO_DEVICES = (ctypes.c_void_p * 1)()
"""For `llama_model_params.devices`: a list of devices that ends with NULL, here an empty one."""
_CONTEXT_STEP_TOKENS = 256
_VALUE_BYTES = 64
"""Room for a metadata value that is a number or the name of an architecture, as text with a NUL."""

_ONE_THREAD_BELOW_BYTES = 32 << 20
"""Smaller models run on one thread by default. Measured with 0.8 MB on two cores: 5,100 tokens per second on one
thread; on two 6,700 at best, and 100 while other programs use a core, because threads wait for each other after
every operation."""


@dataclass(frozen=True, slots=True)
class LoadedContext:
    """A `llama_model *` and a `llama_context *` made from it; the caller frees them with `free`."""

    model: Any
    context: Any
    state_settings: Mapping[str, str | bool]
    """See `Engine.state_settings`."""
    shared_rows: int
    """How many sequences may have a token in one pass; where it must be reproducible, each as in a pass of its own."""


def load_context(path: Path, options: LoadOptions, context_length: int) -> LoadedContext:
    """Load a `.gguf` file and make a context.

    All layers are on the GPU where llama.cpp was built for one; a float32 file stays on the CPU. Ctrl-C stops it at the
    next tensor. Raises EngineError with llama.cpp's own reason when the file can't be loaded, UnsupportedOptionError
    when the model can't have the cache that the options name.
    """
    api = llama_api()
    model = context = None
    try:
        parameters = _model_parameters(api, path)
        parameters.use_extra_bufts = not options.reproducible  # repacked weights have other kernels for four rows
        with captured_llama_log() as log:
            with _interruptible() as keeps_loading:
                callback = api.llama_progress_callback(keeps_loading)
                parameters.progress_callback = callback
                model = api.llama_model_load_from_file(os.fsencode(path), parameters)
            if not model:
                raise EngineError(f"llama.cpp could not load {path}: {reason(log)}")
            parameters = _context_parameters(api, model, options, context_length)
            context = api.llama_init_from_model(model, parameters)
            if not context:
                raise _context_error(path, options, context_length, reason(log))
    except BaseException:
        # Also after Ctrl-C: model and context may exist already.
        free(api, model, context)
        raise
    settings: dict[str, str | bool] = {
        "engine": "llama.cpp",
        "kv_cache_type": options.kv_cache_type or ("f32" if parameters.type_k == api.GGML_TYPE_F32 else "f16"),
        "long_context": context_length > _original_context_length(api, model, context_length),
    }
    shared_rows = min(_independent_rows(api, path), options.sequences) if options.reproducible else options.sequences
    return LoadedContext(model, context, settings, shared_rows)


_INDEPENDENT_ROWS = 7
"""From eight rows on, llama.cpp's tiled kernels compute them in another way."""
_INDEPENDENT_TYPES = frozenset({2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 23})
"""ggml's numbers of Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K to Q6_K and IQ4_XS, without repacking on x86.
Measured bit by bit. Float32, float16, bfloat16 and IQ4_NL have other kernels for one row than for two."""
_VECTORS = ("norm.weight", ".bias", "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Ends of names: tensors that no matrix product uses."""


def _independent_rows(api: Any, path: Path) -> int:
    """How many rows llama.cpp computes in one matrix product with this file's weights exactly as each by itself."""
    if api.llama_supports_gpu_offload() or platform.machine() not in ("x86_64", "AMD64"):
        return 1  # not measured there
    types = read_model_header(path).tensor_types
    known = all(kind in _INDEPENDENT_TYPES or name.endswith(_VECTORS) for name, kind in types.items())
    return _INDEPENDENT_ROWS if known else 1


@functools.cache
def llama_api() -> Any:
    """llama.cpp's C functions, initialized."""
    from llama_cpp import llama_cpp as api

    with captured_llama_log():
        api.llama_backend_init()
    _leave_amx_out(api)
    return api


def _leave_amx_out(api: Any) -> None:
    """Remove AMX from the buffer types that llama.cpp chooses from as it loads weights. Lasts as long as the process.

    Its kernels end the process as compilers such as GCC 12 build them: they drop the tile configuration
    (ggml-org/llama.cpp#26954). pip builds llama-cpp-python for the processor at hand, so a machine with AMX gets them.
    llama.cpp's other ways of repacking weights for the processor stay.
    """
    if b"AMX_INT8 = 1" not in api.llama_print_system_info():
        return
    from llama_cpp._ggml import libggml

    types = _extra_buffer_types(libggml)
    name_of = _function(libggml.ggml_backend_buft_name, ctypes.c_char_p, ctypes.c_void_p)
    count = next(index for index in range(2**31) if types[index] is None)
    others = [types[index] for index in range(count) if name_of(types[index]) != b"AMX"]
    # The list keeps its length: the first null pointer ends it.
    for index, pointer in enumerate(others + [None] * (count - len(others))):
        types[index] = pointer


def _extra_buffer_types(libggml: Any) -> Any:
    """The list of pointers, ended by a null pointer, that `llama_model_load_from_file` walks through for the CPU."""
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


@contextmanager
def _interruptible() -> Iterator[Callable[[float, Any], bool]]:
    """Gives a progress callback that stops loading after Ctrl-C; KeyboardInterrupt is raised at the end of the block.

    Python would raise it inside the callback, where ctypes drops exceptions. So the signal is only recorded there and
    sent again at the end. A handler that the caller installed stays; threads other than the main one get no signals.
    """
    interrupted = False

    def note(_signal: int, _frame: object) -> None:
        nonlocal interrupted
        interrupted = True

    in_main_thread = threading.current_thread() is threading.main_thread()
    takes_over = in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if takes_over:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda _progress, _user_data: not interrupted
    finally:
        if takes_over:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if interrupted:
            signal.raise_signal(signal.SIGINT)


def _model_parameters(api: Any, path: Path) -> Any:
    parameters = api.llama_model_default_params()
    if api.llama_supports_gpu_offload() and _is_float32(path):
        # Others are compared with a float32 model, and Metal's matrix product rounds float32 weights to half precision
        # (read in llama.cpp's source, not measured on a Mac). Without devices the CPU computes.
        parameters.n_gpu_layers = 0
        parameters.devices = ctypes.cast(_NO_DEVICES, ctypes.c_void_p)
    else:
        parameters.n_gpu_layers = -1
    return parameters


def _is_float32(path: Path) -> bool:
    """Whether a file's header says that all its weights are float32; False where it can't be read: loading says why.

    `llama_model_ftype` returns 0, which means float32, for every model that was loaded without its weights.
    """
    try:
        return read_header(path).is_float32
    except LocalqError:
        return False


def _original_context_length(api: Any, model: Any, default: int) -> int:
    """The longest context for LongRoPE's short factors."""
    architecture = _metadata(api, model, "general.architecture")
    return int(_metadata(api, model, f"{architecture}.rope.scaling.original_context_length") or default)


def _metadata(api: Any, model: Any, key: str) -> str:
    """A short value as text; empty where the key does not exist."""
    value = ctypes.create_string_buffer(_VALUE_BYTES)
    api.llama_model_meta_val_str(model, key.encode(), value, _VALUE_BYTES)
    return value.value.decode()


def _default_threads(api: Any, model: Any) -> int:
    if api.llama_model_size(model) < _ONE_THREAD_BELOW_BYTES:
        return 1
    return available_cores()


def _context_parameters(api: Any, model: Any, options: LoadOptions, context_length: int) -> Any:
    parameters = api.llama_context_default_params()
    parameters.n_ctx = _padded(context_length) * options.sequences  # divided among the sequences, a stream for each
    parameters.n_seq_max = options.sequences
    parameters.n_batch = parameters.n_ubatch = max(options.batch_tokens, options.sequences)
    parameters.n_threads = parameters.n_threads_batch = options.threads or _default_threads(api, model)
    cache_type, flash_attention = api.GGML_TYPE_F16, options.flash_attention
    if api.llama_model_ftype(model) == api.LLAMA_FTYPE_ALL_F32 and options.kv_cache_type is None:
        # Others are compared with a float32 model. Flash attention computes in float16 on the CPU, whatever the
        # cache's type: with random weights its KL divergence is 3e-6; without flash attention it is 1e-11.
        cache_type, flash_attention = api.GGML_TYPE_F32, bool(flash_attention)
    if options.reproducible:
        # With several threads it divides a pass of one token among them by the number of cells.
        flash_attention = False
    if options.kv_cache_type is not None:
        cache_type = getattr(api, f"GGML_TYPE_{options.kv_cache_type.upper()}")
    parameters.type_k = parameters.type_v = cache_type
    parameters.flash_attn_type = {
        None: api.LLAMA_FLASH_ATTN_TYPE_AUTO,
        True: api.LLAMA_FLASH_ATTN_TYPE_ENABLED,
        False: api.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    }[flash_attention]
    # Any token of the cache may be needed again, also one outside the attention window.
    parameters.swa_full = True
    parameters.no_perf = True
    return parameters


def _padded(context_length: int) -> int:
    """llama.cpp makes room for a multiple of 256 tokens; what is lacking would be taken from the last sequences."""
    return -(-context_length // _CONTEXT_STEP_TOKENS) * _CONTEXT_STEP_TOKENS


def _context_error(path: Path, options: LoadOptions, context_length: int, cause: str) -> LocalqError:
    if re.search("flash|cache type", cause, re.IGNORECASE):
        return UnsupportedOptionError(
            f"llama.cpp can't run {path} with kv_cache_type {options.kv_cache_type} and flash_attention "
            f"{options.flash_attention}: {cause}",
            "leave out both --kv-cache-type and --flash-attention",
        )
    return EngineError(
        f"llama.cpp could not make a context of {context_length} tokens for {path}: {cause}",
        "a smaller context needs less memory: -c/--context-length",
    )


def free(api: Any, model: Any, context: Any) -> None:
    """Free both; either may be None."""
    with captured_llama_log():
        api.llama_free(context)
        api.llama_model_free(model)


def reason(log: Sequence[str]) -> str:
    """What llama.cpp gave as the reason: its last line, except those that only say that a load failed."""
    lines = [line.strip() for line in "".join(log).splitlines() if line.strip()]
    return ([line for line in lines if "failed to load model" not in line] or lines or ["no reason given"])[-1]
