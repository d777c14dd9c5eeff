"""An MLX folder as a network of mlx_lm, ready to compute. Knows nothing of generation."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localq.errors import EngineError
from localq.hardware import mlx_runs_on_gpu
from localq.json_files import text_config


@dataclass(frozen=True, slots=True)
class Network:
    """A network with its weights in memory."""

    model: Any
    """An `mlx.nn.Module` as mlx_lm makes it."""
    vocabulary_size: int
    is_long_context: bool
    """Whether LongRoPE's long factors are used, where there are two."""


def load_network(folder: Path, context_length: int) -> Network:
    """Load an MLX folder for contexts of a length.

    Raises EngineError when mlx_lm can't load the folder.
    """
    import mlx.core as mx
    from mlx_lm.utils import load_model

    wire_memory()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        changed = longrope_for(config, context_length)
        settings: dict[str, Any] = dict(changed)
        if config.get("text_config", {}) is None:
            settings["text_config"] = {}  # mlx_lm searches in it
        model, _ = load_model(folder, lazy=True, model_config=settings)
        if not mlx_runs_on_gpu():
            # The CPU's half-precision matrix products are 9 (bfloat16) to 35 (float16) times slower.
            model.set_dtype(mx.float32)
        # The state has more than the parameters: also rotary frequencies, which only this thread could compute later.
        # A network is made with random weights first, never computed: each one lengthens the chain of random states.
        mx.eval(model.state, mx.random.state)
        return Network(model, text_config(config)["vocab_size"], not changed)
    except Exception as error:
        raise EngineError(f"MLX could not load {folder}: {type(error).__name__}: {error}") from error


def longrope_for(config: Mapping[str, Any], context_length: int) -> dict[str, Any]:
    """What to change in a config so that mlx_lm rotates by the LongRoPE factors of this context length.

    LongRoPE has short factors for contexts up to `original_max_position_embeddings` and long ones beyond.
    mlx_lm always takes the long ones, so for a short context the short ones are given as both. The choice
    by context length is llama.cpp's. The scale of the embeddings follows from the config's maximum length
    and stays as it is; Phi-3.5-MoE names one for each regime (`short_mscale`, `long_mscale`).
    """
    scaling = config.get("rope_scaling")
    if not scaling or "short_factor" not in scaling:
        return {}
    original = config.get("original_max_position_embeddings") or scaling["original_max_position_embeddings"]
    if context_length > original:
        return {}
    short = {"long_factor": scaling["short_factor"]}
    if "short_mscale" in scaling:
        short["long_mscale"] = scaling["short_mscale"]
    return {"rope_scaling": {**scaling, **short}}


@functools.cache
def wire_memory() -> None:
    """Let MLX keep its memory on the GPU from being paged out, where Metal allows it.

    The limit is the process's. It is set once and stays: it takes no memory by itself, and engines that each set it
    and put it back would take it from one another.
    """
    import mlx.core as mx

    most_bytes = mx.device_info().get("max_recommended_working_set_size")
    if most_bytes is not None:
        mx.set_wired_limit(int(most_bytes))
