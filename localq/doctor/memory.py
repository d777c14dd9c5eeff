"""What a form takes in memory while it runs, worked out from its plan and the model's shape. Measures nothing."""

from __future__ import annotations

from dataclasses import dataclass

from localq.checkpoint.tensors import DTYPE_BYTES
from localq.conversion.plan_mlx import MlxPlan, stored_bytes
from localq.conversion.survey import Plan
from localq.engines.availability import has_backend
from localq.engines.base import PREFILL_CHUNK_TOKENS
from localq.families.config import ModelConfig

RUNTIME_BYTES = 300_000_000
"""What a process takes beside weights and context: Python, the tokenizer, the runtime and its buffers. Measured on
Linux with a 1.2B Llama of 128,256 tokens: 227 MB with llama.cpp, 171 MB with MLX; rounded up to the next hundred
megabytes and one for safety."""

_FLOAT32_BYTES, _FLOAT16_BYTES = 4, 2


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory of one opened form."""

    weight_bytes: int
    """While it runs: more than on disk where the runtime widens them."""
    loading_bytes: int
    """On top of the weights, until they are loaded; what the context takes comes later."""
    context_bytes_per_token: int

    def longest_context_tokens(self, free_bytes: int, most_tokens: int) -> int:
        """Tokens that fit in the memory that is free, at most `most_tokens`; 0 where the weights alone don't fit.

        (free - weights - RUNTIME_BYTES) / context bytes per token.
        """
        room = free_bytes - self.weight_bytes - RUNTIME_BYTES
        return 0 if room < self.loading_bytes else min(most_tokens, room // self.context_bytes_per_token)


def memory_use(plan: Plan, config: ModelConfig) -> MemoryUse:
    """What a form takes on this machine, the way that localq opens it (`localq.engines`)."""
    if isinstance(plan, MlxPlan):
        return _mlx_memory(plan, config, on_gpu=_mlx_runs_on_gpu())
    is_float32 = plan.recipe.file_type == "F32"
    # Keys and values, and what a chunk of a prompt computes for each of the context's tokens: the mask, and without
    # flash attention every head's scores in single precision. As llama.cpp's log tells its buffers.
    if is_float32:
        chunk_bytes = PREFILL_CHUNK_TOKENS * _FLOAT32_BYTES * (config.head_count + 1)
        return MemoryUse(plan.weight_bytes, 0, _kv_bytes_per_token(config, _FLOAT32_BYTES) + chunk_bytes)
    chunk_bytes = PREFILL_CHUNK_TOKENS * _FLOAT16_BYTES
    return MemoryUse(plan.weight_bytes, 0, _kv_bytes_per_token(config, _FLOAT16_BYTES) + chunk_bytes)


def _mlx_memory(plan: MlxPlan, config: ModelConfig, on_gpu: bool) -> MemoryUse:
    """On the CPU every float becomes float32, and a tensor lies there in both precisions while it is widened."""
    stored = [
        (dtype, stored_bytes(dtype, shape)) for tensor in plan.tensors for dtype, shape in tensor.stored().values()
    ]
    if on_gpu:
        dtype_bytes = max(DTYPE_BYTES[tensor.dtype] for tensor in plan.tensors)
        return MemoryUse(plan.weight_bytes, 0, _kv_bytes_per_token(config, dtype_bytes))
    widened = sum(nbytes * _FLOAT32_BYTES // DTYPE_BYTES[d] if d in ("F16", "BF16") else nbytes for d, nbytes in stored)
    loading = max((nbytes for dtype, nbytes in stored if dtype in ("F16", "BF16")), default=0)
    return MemoryUse(widened, loading, _kv_bytes_per_token(config, _FLOAT32_BYTES))


def _kv_bytes_per_token(config: ModelConfig, number_bytes: int) -> int:
    """The config's figure is for half precision."""
    return config.kv_cache_bytes_per_token * number_bytes // _FLOAT16_BYTES


def _mlx_runs_on_gpu() -> bool:
    if not has_backend("mlx"):
        return True  # the machine that will run it has one
    import mlx.core as mx

    return bool(mx.default_device().type == mx.DeviceType.gpu)
