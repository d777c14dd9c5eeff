"""The Engine over llama.cpp, through the C functions that llama_cpp exposes.

The high-level `Llama` class is not used: its streaming slows down with the length of the text. Knows no
text: llama.cpp's own tokenizer and chat templates stay unused.
"""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.engines.availability import available_cores, require_backend
from localq.engines.base import (
    PREFILL_CHUNK_TOKENS,
    PrefillProgress,
    check_ids,
    check_prompt,
    chunks,
    shared_prefix_tokens,
)
from localq.engines.llamacpp_sampling import sampler_chain
from localq.errors import EngineError, PromptTooLongError
from localq.llama_log import captured_llama_log
from localq.options import GenerationOptions, LoadOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SEQUENCE = 0
"""llama.cpp can hold several token sequences; localq uses one."""
_NEWEST = -1
"""Index of the newest output in llama.cpp's calls that take one."""

_NO_DEVICES = (ctypes.c_void_p * 1)()
"""What `llama_model_params.devices` wants: a list of devices that ends with NULL, here an empty one."""
_INTEGER_BYTES = 16
"""Room for a metadata value that is a 32-bit integer, as text with a NUL."""

_ONE_THREAD_BELOW_BYTES = 32 << 20
"""Smaller models run on one thread by default. Measured with 0.8 MB on two cores: 5,100 tokens per second on one
thread; on two 6,700 at best, and 100 while other programs keep a core busy, since threads wait for each other after
every operation."""


def open_engine(path: Path, options: LoadOptions, default_context_length: int) -> LlamaCppEngine:
    """Load a `.gguf` file, all layers on the GPU where llama.cpp was built for one; a float32 file stays on the CPU.

    Raises BackendUnavailableError without llama_cpp, EngineError with llama.cpp's own reason when the file
    can't be loaded.
    """
    require_backend("gguf")
    api = _api()
    context_length = options.context_length or default_context_length
    model = context = None
    try:
        with captured_llama_log() as log:
            model = api.llama_model_load_from_file(os.fsencode(path), _model_parameters(api, path))
            if not model:
                raise EngineError(f"llama.cpp could not load {path}: {_reason(log)}")
            threads = options.threads or _default_threads(api, model)
            is_reference = api.llama_model_ftype(model) == api.LLAMA_FTYPE_ALL_F32
            parameters = _context_parameters(api, context_length, threads, is_reference)
            context = api.llama_init_from_model(model, parameters)
            if not context:
                raise EngineError(
                    f"llama.cpp could not make a context of {context_length} tokens for {path}: {_reason(log)}",
                    "a smaller one, with -c/--context-length, needs less memory",
                )
    except BaseException:
        # Also after Ctrl-C, which is raised as the log's capture ends: model and context may be there already.
        _free(api, model, context)
        raise
    return LlamaCppEngine(model, context, context_length)


class LlamaCppEngine:
    """An opened GGUF model with one key-value cache."""

    def __init__(self, model: Any, context: Any, context_length: int) -> None:
        """Takes ownership of a `llama_model *` and of a `llama_context *` made from it."""
        self._api = _api()
        self._context = context
        self._memory = self._api.llama_get_memory(context)
        self._context_length = context_length
        self._vocabulary_size: int = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(model))
        # What is surely in the cache. The cache may hold more after an interruption, never less.
        self._tokens: list[int] = []
        self._has_logits = False
        # Also runs at exit: on a GPU, llama.cpp ends the process badly when a context is left over.
        self._free = weakref.finalize(self, _free, self._api, model, context)

    @property
    def context_length(self) -> int:
        """Tokens of prompt and reply that fit."""
        return self._context_length

    @property
    def vocabulary_size(self) -> int:
        """Number of logits per token."""
        return self._vocabulary_size

    def prefill(self, prompt: Sequence[int], on_progress: PrefillProgress | None = None) -> int:
        """See `Engine.prefill`."""
        self._require_open()
        check_prompt(prompt, self._vocabulary_size, self._context_length)
        reused = self._keep(shared_prefix_tokens(self._tokens, prompt))
        for chunk in chunks(prompt, reused):
            self._compute(chunk)
            if on_progress is not None:
                on_progress(len(self._tokens), len(prompt))
        return reused

    def generate(self, options: GenerationOptions) -> Generator[int, None, None]:
        """See `Engine.generate`."""
        self._require_logits()
        sample = self._api.llama_sampler_sample
        limit = min(options.max_tokens, self._context_length - len(self._tokens))
        with sampler_chain(options, self._vocabulary_size, self._tokens) as chain:
            for left in reversed(range(limit)):
                token: int = sample(chain, self._context, _NEWEST)
                yield token
                if left > 0:
                    self._compute((token,))

    def logits(self) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        import numpy as np

        self._require_logits()
        row = self._api.llama_get_logits_ith(self._context, _NEWEST)
        return np.ctypeslib.as_array(row, (self._vocabulary_size,)).copy()

    def all_logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """See `Engine.all_logits`."""
        import numpy as np

        self._require_open()
        check_ids(tokens, self._vocabulary_size)
        if len(tokens) > self._context_length:
            raise PromptTooLongError(len(tokens), self._context_length)
        self._keep(0)
        logits = np.empty((len(tokens), self._vocabulary_size), dtype=np.float32)
        for chunk in chunks(tokens, 0):
            first = len(self._tokens)
            self._compute(chunk, every_output=True)
            rows = np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (len(chunk), self._vocabulary_size))
            logits[first : first + len(chunk)] = rows
        return logits

    def close(self) -> None:
        """See `Engine.close`."""
        self._free()

    def _keep(self, token_count: int) -> int:
        """Forget all but the first tokens of the cache; returns how many could be kept."""
        del self._tokens[token_count:]
        self._has_logits = False
        # Asked for even when nothing is to go by our own list: an interruption may have left more in the cache.
        if not self._api.llama_memory_seq_rm(self._memory, _SEQUENCE, token_count, -1):
            self._api.llama_memory_clear(self._memory, False)
            self._tokens.clear()
        return len(self._tokens)

    def _compute(self, tokens: Sequence[int], every_output: bool = False) -> None:
        """Append at most a chunk of tokens to the cache; logits of the last, or of every one, become readable."""
        api = self._api
        # The batch only points to these arrays: they must live until llama_decode returns.
        ids = (api.llama_token * len(tokens))(*tokens)
        batch = api.llama_batch_get_one(ids, len(tokens))
        if every_output:
            wanted = (ctypes.c_int8 * len(tokens))(*[1] * len(tokens))
            batch.logits = ctypes.cast(wanted, ctypes.POINTER(ctypes.c_int8))
        self._has_logits = False
        with captured_llama_log() as log:
            status = api.llama_decode(self._context, batch)
            api.llama_synchronize(self._context)
        if status != 0:
            self._keep(0)
            raise EngineError(f"llama.cpp could not compute {len(tokens)} tokens (status {status}): {_reason(log)}")
        self._tokens.extend(tokens)
        self._has_logits = True

    def _require_open(self) -> None:
        if not self._free.alive:
            raise EngineError("this model has been closed")

    def _require_logits(self) -> None:
        self._require_open()
        if not self._has_logits:
            raise EngineError("there are no logits: no prompt was computed to its end")


@functools.cache
def _api() -> Any:
    """llama.cpp's C functions, ready for use."""
    from llama_cpp import llama_cpp as api

    with captured_llama_log():
        api.llama_backend_init()
    return api


def _model_parameters(api: Any, path: Path) -> Any:
    parameters = api.llama_model_default_params()
    if api.llama_supports_gpu_offload() and _is_float32(api, path):
        # A model in float32 is what others are measured against, and Metal's matrix product makes half-precision
        # tiles of float32 weights (a fact of llama.cpp's source, not seen on a Mac). No devices: the CPU computes.
        parameters.n_gpu_layers = 0
        parameters.devices = ctypes.cast(_NO_DEVICES, ctypes.c_void_p)
    else:
        parameters.n_gpu_layers = -1
    # Compilers such as GCC 12 drop the tile configuration of llama.cpp's AMX kernels, which then end the process
    # (ggml-org/llama.cpp#26954). A build that has them is kept from using them, and from all other repacking.
    parameters.use_extra_bufts = b"AMX_INT8 = 1" not in api.llama_print_system_info()
    return parameters


def _is_float32(api: Any, path: Path) -> bool:
    """Whether a file says that all its weights are float32. Reads its header and vocabulary: 0.3 s for 128,000 tokens.

    `llama_model_ftype` answers 0, which means float32, for every model that was loaded without its weights.
    """
    parameters = api.llama_model_default_params()
    parameters.vocab_only = True
    model = api.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        return False  # Loading it with its weights will say why.
    try:
        value = ctypes.create_string_buffer(_INTEGER_BYTES)
        api.llama_model_meta_val_str(model, b"general.file_type", value, _INTEGER_BYTES)
        return value.value == str(api.LLAMA_FTYPE_ALL_F32).encode()
    finally:
        api.llama_model_free(model)


def _default_threads(api: Any, model: Any) -> int:
    if api.llama_model_size(model) < _ONE_THREAD_BELOW_BYTES:
        return 1
    return available_cores()


def _context_parameters(api: Any, context_length: int, threads: int, is_reference: bool) -> Any:
    parameters = api.llama_context_default_params()
    parameters.n_ctx = context_length
    parameters.n_batch = parameters.n_ubatch = PREFILL_CHUNK_TOKENS
    parameters.n_threads = parameters.n_threads_batch = threads
    if is_reference:
        # A model in float32 is what others are measured against. Flash attention computes in float16 on the CPU,
        # whatever the cache's type: measured on random weights, it is off by a KL divergence of 3e-6, without 1e-11.
        parameters.type_k = parameters.type_v = api.GGML_TYPE_F32
        parameters.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    else:
        parameters.type_k = parameters.type_v = api.GGML_TYPE_F16
        parameters.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_AUTO
    # Any token of the cache may be wanted again, also one that has left the attention window.
    parameters.swa_full = True
    parameters.no_perf = True
    return parameters


def _free(api: Any, model: Any, context: Any) -> None:
    with captured_llama_log():
        api.llama_free(context)
        api.llama_model_free(model)


def _reason(log: Sequence[str]) -> str:
    """What llama.cpp gave as the reason: its last line but for those that only say that a load failed."""
    lines = [line.strip() for line in "".join(log).splitlines() if line.strip()]
    return ([line for line in lines if "failed to load model" not in line] or lines or ["no reason given"])[-1]
