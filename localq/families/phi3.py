"""Phi-3 mini and medium, Phi-3.5-mini, Phi-4 and Phi-4-mini: whatever is a Phi3ForCausalLM."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from localq.errors import CheckpointError, UnsupportedModelError
from localq.families.base import (
    MetadataValue,
    TensorLayout,
    check_common,
    common_gguf_metadata,
    common_mlx_config,
    embedding_layouts,
)
from localq.families.config import ModelConfig, positive_integer, positive_number
from localq.options import DEFAULT_CONTEXT_LENGTH_TOKENS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROPE_TYPES = ("default", "longrope")
_FIXED_SCALES = ("factor", "attention_factor", "short_mscale", "long_mscale")
_HINT = "take config.json from the model's page again"


class Phi3:
    """Fused qkv and gate-up projections, RMS norms, SwiGLU, LongRoPE in the long-context members."""

    name = "Phi-3"

    def check(self, config: ModelConfig) -> None:
        """Refuse the variants that the two runtimes don't run, or not alike."""
        check_common(self.name, config, "phi3", _ROPE_TYPES)
        if config.head_dim * config.head_count != config.hidden_size:
            raise UnsupportedModelError(
                f"Phi-3 with heads of width {config.head_dim} is not supported",
                f"supported: hidden_size / num_attention_heads, {config.hidden_size / config.head_count:g}",
            )
        if _rotated_width(config) % 2:
            raise CheckpointError(
                f"config.json: each head rotates {_rotated_width(config)} dimensions; rotary embedding needs pairs",
                _HINT,
            )
        if config.raw.get("sliding_window"):
            positive_integer(config.raw, "sliding_window")
        if config.rope.type == "longrope":
            _check_longrope(config)

    def tensors(self, config: ModelConfig) -> list[TensorLayout]:
        """Every tensor; the family has no biases."""
        hidden, inner = config.hidden_size, config.intermediate_size
        query, key = config.head_count * config.head_dim, config.kv_head_count * config.head_dim
        projections = [
            ("self_attn.qkv_proj", (query + 2 * key, hidden), "attn_qkv"),
            ("self_attn.o_proj", (hidden, query), "attn_output"),
            ("mlp.gate_up_proj", (2 * inner, hidden), "ffn_up"),
            ("mlp.down_proj", (hidden, inner), "ffn_down"),
            ("input_layernorm", (hidden,), "attn_norm"),
            ("post_attention_layernorm", (hidden,), "ffn_norm"),
        ]
        layouts = embedding_layouts(config)
        for layer in range(config.layer_count):
            for name, shape, gguf in projections:
                source, target = f"model.layers.{layer}.{name}.weight", f"blk.{layer}.{gguf}.weight"
                layouts.append(TensorLayout(source, shape, target))
        return layouts

    def gguf_architecture(self) -> str:
        """llama.cpp's name of it."""
        return "phi3"

    def gguf_metadata(self, config: ModelConfig) -> dict[str, MetadataValue]:
        """As llama.cpp's converter writes them (conversion/phi.py)."""
        metadata = common_gguf_metadata("phi3", config)
        metadata["phi3.rope.scaling.original_context_length"] = config.original_context_length
        metadata["phi3.rope.dimension_count"] = _rotated_width(config)
        # Zero marks Phi-4, the member without a sliding window; the runtime attends in full in any case.
        metadata["phi3.attention.sliding_window"] = config.raw.get("sliding_window") or 0
        if config.rope.type == "longrope":
            metadata["phi3.rope.scaling.attn_factor"] = _attention_factor(config)
        return metadata

    def gguf_extra_tensors(self, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
        """LongRoPE's two lists of frequency divisors."""
        import numpy as np

        if config.rope.type != "longrope":
            return {}
        return {
            f"rope_factors_{kind}.weight": np.array(config.rope.parameters[f"{kind}_factor"], dtype=np.float32)
            for kind in ("long", "short")
        }

    def mlx_config(self, config: ModelConfig) -> dict[str, Any]:
        """With the keys that mlx_lm's Phi-3 looks for at the top level."""
        mlx = common_mlx_config(config)
        mlx["partial_rotary_factor"] = config.rope.partial_rotary_factor
        mlx["original_max_position_embeddings"] = config.original_context_length
        return mlx

    def default_context_length(self, config: ModelConfig) -> int:
        """The original context of a LongRoPE model, where its short factors hold; at most 8,192 tokens."""
        return min(config.original_context_length, DEFAULT_CONTEXT_LENGTH_TOKENS)


def _rotated_width(config: ModelConfig) -> int:
    """Rotated dimensions of each head."""
    return int(config.rope.partial_rotary_factor * config.hidden_size) // config.head_count


def _attention_factor(config: ModelConfig) -> float:
    """LongRoPE's scale on queries and keys: sqrt(1 + ln(max / original) / ln(original)).

    Source: transformers' `_compute_longrope_parameters`.
    """
    scale = config.max_position_embeddings / config.original_context_length
    if scale <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(scale) / math.log(config.original_context_length))


def _check_longrope(config: ModelConfig) -> None:
    parameters = config.rope.parameters
    original = positive_integer(parameters, "original_max_position_embeddings")
    if original == 1:
        raise CheckpointError('config.json: "original_max_position_embeddings" is 1', _HINT)
    for name in _FIXED_SCALES:
        # Both runtimes derive the scale from the two context lengths, whatever stands here.
        derived = config.max_position_embeddings / original if name == "factor" else None
        if parameters.get(name, derived) != derived:
            raise UnsupportedModelError(
                f"LongRoPE with {name} {parameters[name]!r} is not supported",
                "supported: the scale that follows from the original and the longest context",
            )
    expected = _rotated_width(config) // 2
    for name in ("short_factor", "long_factor"):
        factors = parameters.get(name)
        if not isinstance(factors, list):
            raise CheckpointError(f'config.json: rope_scaling has no "{name}", which LongRoPE needs', _HINT)
        if len(factors) != expected:
            raise CheckpointError(
                f"config.json: {name} has {len(factors)} numbers; the head's rotated width asks for {expected}", _HINT
            )
        for number, factor in enumerate(factors):
            positive_number({f"{name}[{number}]": factor}, f"{name}[{number}]")


FAMILY = Phi3()
