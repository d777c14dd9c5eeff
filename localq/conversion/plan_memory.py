"""What a form would take in memory while it runs, worked out from its plan and the model's shape."""

from __future__ import annotations

from localq.backends import has_backend
from localq.conversion.plan_mlx import MlxPlan, stored_bytes
from localq.conversion.survey import Plan
from localq.families.config import ModelConfig
from localq.hardware import mlx_runs_on_gpu
from localq.memory import DEFAULTS, KvShape, MemoryUse, gguf_memory, mlx_memory
from localq.options import LoadOptions


def memory_use(plan: Plan, config: ModelConfig, options: LoadOptions = DEFAULTS) -> MemoryUse:
    """What a form takes on this machine, the way that localq opens it (`localq.engines`)."""
    kv = KvShape(2 * config.layer_count * config.kv_head_count * config.head_dim, config.head_count)
    if not isinstance(plan, MlxPlan):
        return gguf_memory(plan.weight_bytes, kv, plan.recipe.file_type == "F32", options)
    stored = (tensor.stored().values() for tensor in plan.tensors)
    tensors = [(dtype, stored_bytes(dtype, shape)) for parts in stored for dtype, shape in parts]
    return mlx_memory(tensors, kv, _mlx_runs_on_gpu(), options)


def _mlx_runs_on_gpu() -> bool:
    return mlx_runs_on_gpu() if has_backend("mlx") else True  # the machine that will run it has one
