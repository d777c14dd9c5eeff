"""How much memory an open model takes: estimated from headers before it is loaded, and refused where it does not fit.

Only the free memory is measured. The estimates follow how `localq.engines` load a model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localq.checkpoint.safetensors_header import read_header
from localq.engines.base import PREFILL_CHUNK_TOKENS
from localq.errors import NotEnoughMemoryError
from localq.gguf_file import GgufHeader
from localq.hardware import llama_cpp_has_gpu, mlx_runs_on_gpu
from localq.options import KvCacheType, LoadOptions
from localq.tables import format_bytes

RUNTIME_BYTES = 300_000_000
"""What a process takes besides weights and context: Python, the tokenizer, the runtime and its buffers. Measured on
Linux with a 1.2B Llama of 128,256 tokens: 202 to 229 MB with llama.cpp, 171 MB with MLX; rounded up to the next
hundred megabytes."""

IGNORE_VARIABLE = "LOCALQ_IGNORE_MEMORY"
"""With any value, models are loaded that seem not to fit: the machine may have swap space."""

DEFAULTS = LoadOptions()

_FLOAT32_BYTES, _FLOAT16_BYTES = 4, 2
_KV_NUMBER_BYTES: dict[KvCacheType, float] = {"q8_0": 1.125, "q4_0": 0.625}
"""The larger of both engines: ggml has a half-precision scale for 32 numbers, MLX a scale and a bias for 64."""
_LEAST_CONTEXT_TOKENS = 256  # a smaller one is not recommended


@dataclass(frozen=True, slots=True)
class KvShape:
    """What a model keeps for each token of a context."""

    numbers_per_token: int
    """Keys and values: 2 x layers x key-value heads x width of a head."""
    head_count: int
    """Heads of queries in a layer."""

    def bytes_per_token(self, number_bytes: int, options: LoadOptions) -> int:
        """With `number_bytes` for each number, where `options` have no other type; of all sequences together."""
        wanted = options.kv_cache_type
        of_one = int(self.numbers_per_token * (_KV_NUMBER_BYTES[wanted] if wanted else number_bytes))
        return of_one * options.sequences


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of one open model."""

    weight_bytes: int
    """While it runs: more than on disk where the runtime converts them to a larger type."""
    loading_bytes: int
    """In addition to the weights, until they are loaded; the context is allocated later."""
    context_bytes_per_token: int
    """For one token in each of the sequences."""
    sequences: int = 1

    def needed_bytes(self, context_tokens: int) -> int:
        """With a context: weights + RUNTIME_BYTES + the larger of what the context and what loading takes."""
        return (
            self.weight_bytes + RUNTIME_BYTES + max(context_tokens * self.context_bytes_per_token, self.loading_bytes)
        )

    def longest_context_tokens(self, free_bytes: int, most_tokens: int) -> int:
        """Tokens that fit in the free memory, at most `most_tokens`; 0 where even the weights don't fit.

        (free - weights - RUNTIME_BYTES) / context bytes per token.
        """
        room = free_bytes - self.weight_bytes - RUNTIME_BYTES
        return 0 if room < self.loading_bytes else min(most_tokens, room // max(self.context_bytes_per_token, 1))


def gguf_memory(weight_bytes: int, kv: KvShape, is_float32: bool, options: LoadOptions = DEFAULTS) -> MemoryUse:
    """A GGUF file: its weights as on disk, and for each token of the context its keys and values and two buffers.

    The buffers, whose sizes are in llama.cpp's log, are computed for a chunk of a prompt: the mask, and without flash
    attention the scores of every head in single precision.
    """
    number_bytes = _FLOAT32_BYTES if is_float32 else _FLOAT16_BYTES
    has_flash_attention = not is_float32 if options.flash_attention is None else options.flash_attention
    has_flash_attention = has_flash_attention and not options.reproducible
    rows = _FLOAT16_BYTES if has_flash_attention else _FLOAT32_BYTES * (kv.head_count + 1)
    per_token = kv.bytes_per_token(number_bytes, options) + PREFILL_CHUNK_TOKENS * rows
    return MemoryUse(weight_bytes, 0, per_token, options.sequences)


def mlx_memory(
    tensors: Iterable[tuple[str, int]], kv: KvShape, on_gpu: bool, options: LoadOptions = DEFAULTS
) -> MemoryUse:
    """An MLX folder from its tensors, (dtype, bytes) each.

    On the CPU every float becomes float32, and a tensor is in memory in both precisions while it is converted.
    """
    stored = list(tensors)
    halves = [nbytes for dtype, nbytes in stored if dtype in ("F16", "BF16")]
    weight_bytes = sum(nbytes for _, nbytes in stored)
    if on_gpu:
        number_bytes = _FLOAT16_BYTES if halves else _FLOAT32_BYTES
        return MemoryUse(weight_bytes, 0, kv.bytes_per_token(number_bytes, options), options.sequences)
    widened_bytes = sum(halves) * (_FLOAT32_BYTES - _FLOAT16_BYTES) // _FLOAT16_BYTES
    loading_bytes = max(halves, default=0)
    per_token = kv.bytes_per_token(_FLOAT32_BYTES, options)
    return MemoryUse(weight_bytes + widened_bytes, loading_bytes, per_token, options.sequences)


def gguf_file_memory(header: GgufHeader, options: LoadOptions = DEFAULTS) -> MemoryUse:
    """A `.gguf` file of any architecture, by its header."""
    return gguf_memory(header.weight_bytes, _gguf_kv_shape(header), header.is_float32, options)


def gguf_file_kv_bytes_per_token(header: GgufHeader, options: LoadOptions = DEFAULTS) -> int:
    """Of keys and values only."""
    number_bytes = _FLOAT32_BYTES if header.is_float32 else _FLOAT16_BYTES
    return _gguf_kv_shape(header).bytes_per_token(number_bytes, options)


def _gguf_kv_shape(header: GgufHeader) -> KvShape:
    """The sum over the layers of key-value heads x (width of a key + width of a value).

    Layers without attention have no such heads, and what they store does not grow with the context.
    """
    layers = header.integer("block_count") or 0
    heads = header.integer("attention.head_count") or 1
    head_width = (header.integer("embedding_length") or 0) // max(heads, 1)
    widths = [header.integer(f"attention.{name}_length") for name in ("key", "value")]
    width = sum(head_width if stated is None else stated for stated in widths)
    kv_heads = header.of_model("attention.head_count_kv")
    in_all = sum(kv_heads) if isinstance(kv_heads, list) else layers * (kv_heads if type(kv_heads) is int else heads)
    return KvShape(in_all * width, heads)


def mlx_folder_memory(folder: Path, config: Mapping[str, Any], options: LoadOptions = DEFAULTS) -> MemoryUse:
    """An MLX folder of any model, by the headers of its weights and the keys that transformers' configurations share.

    Raises CheckpointError for a damaged weight file.
    """
    tensors = [tensor for file in sorted(folder.glob("model*.safetensors")) for tensor in read_header(file)]
    layers, heads, hidden = (_count(config, key) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
    kv_heads = _count(config, "num_key_value_heads") or heads
    head_width = _count(config, "head_dim") or hidden // max(heads, 1)
    kv = KvShape(2 * layers * kv_heads * head_width, heads)
    return mlx_memory(((tensor.dtype, tensor.nbytes) for tensor in tensors), kv, mlx_runs_on_gpu(), options)


def require_memory(name: str, form: str, use: MemoryUse, context_length: int, others_bytes: int = 0) -> None:
    """Raise EngineError where a model, `mlx` or `gguf`, does not fit in the free memory together with its context.

    `others_bytes` of the free memory are for models that will be open at the same time. Does nothing where a graphics
    card with its own memory computes: there the runtime refuses.
    """
    import psutil

    if computes_in_other_memory(form):
        return
    free_bytes = max(psutil.virtual_memory().available - others_bytes, 0)
    longest = use.longest_context_tokens(free_bytes, context_length)
    if longest == context_length or os.environ.get(IGNORE_VARIABLE):
        return
    needed_bytes, context_bytes = use.needed_bytes(context_length), context_length * use.context_bytes_per_token
    beside = f" besides {format_bytes(others_bytes)} for other formats" if others_bytes else ""
    advice = f"-c {longest // _LEAST_CONTEXT_TOKENS * _LEAST_CONTEXT_TOKENS} would fit"
    if longest < _LEAST_CONTEXT_TOKENS:
        advice = "use a smaller format, or close other programs"
    contexts = "a context" if use.sequences == 1 else f"{use.sequences} contexts"
    raise NotEnoughMemoryError(
        f"{name} with {contexts} of {context_length:,} tokens needs about {format_bytes(needed_bytes)} of memory "
        f"({format_bytes(use.weight_bytes)} for weights, {format_bytes(context_bytes)} for the context); "
        f"{format_bytes(free_bytes)} are free{beside}",
        f"{advice}; {IGNORE_VARIABLE}=1 loads it anyway",
    )


def computes_in_other_memory(form: str) -> bool:
    """Whether `mlx` or `gguf` runs on a graphics card with its own memory; a Mac's GPU has none."""
    return sys.platform != "darwin" and _runs_on_gpu(form)


def _runs_on_gpu(form: str) -> bool:
    return mlx_runs_on_gpu() if form == "mlx" else llama_cpp_has_gpu()


def _count(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    return value if type(value) is int and value > 0 else 0
