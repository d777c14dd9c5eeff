"""Phi-3 mini and medium, Phi-3.5-mini, Phi-4 and Phi-4-mini: every Phi3ForCausalLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from localq.families.base import (
    FILE_TYPE,
    Family,
    MetadataValue,
    Module,
    TensorLayout,
    Traits,
    check_traits,
    common_mlx_config,
    layouts_of,
    outer_layouts,
    phi_gguf_metadata,
)
from localq.families.config import ModelConfig, positive_integer
from localq.families.longrope import attention_factor, check_longrope, factor_tensors, longrope_caveats
from localq.options import DEFAULT_CONTEXT_LENGTH_TOKENS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TRAITS = Traits("phi3", ("default", "longrope"), partial_rotary=True)
_DERIVED_SCALES = ("factor", "attention_factor", "short_mscale", "long_mscale")


class Phi3(Family):
    """Fused qkv and gate-up projections, RMS norms, SwiGLU, LongRoPE in the long-context members."""

    name = "Phi-3"

    def check(self, config: ModelConfig) -> None:
        """Refuse the variants that the two runtimes do not run, or run differently."""
        check_traits(self.name, config, _TRAITS)
        if config.raw.get("sliding_window"):
            positive_integer(config.raw, "sliding_window")
        if config.rope.type == "longrope":
            check_longrope(config, config.rotated_width, _DERIVED_SCALES)

    def caveats(self, config: ModelConfig) -> tuple[str, ...]:
        """A sliding window that is shorter than the context, and an original context that llama.cpp rounds."""
        return (*_sliding_window_caveats(config), *longrope_caveats(config))

    def tensors(self, config: ModelConfig) -> list[TensorLayout]:
        """Every tensor; the family has no biases."""
        hidden, inner = config.hidden_size, config.intermediate_size
        query, key = config.head_count * config.head_dim, config.kv_head_count * config.head_dim
        modules: list[Module] = [
            ("self_attn.qkv_proj", (query + 2 * key, hidden), "attn_qkv"),
            ("self_attn.o_proj", (hidden, query), "attn_output"),
            ("mlp.gate_up_proj", (2 * inner, hidden), "ffn_up"),
            ("mlp.down_proj", (hidden, inner), "ffn_down"),
            ("input_layernorm", (hidden,), "attn_norm"),
            ("post_attention_layernorm", (hidden,), "ffn_norm"),
        ]
        layouts = outer_layouts(config)
        for layer in range(config.layer_count):
            placed = [(f"model.layers.{layer}.{name}", shape, f"blk.{layer}.{gguf}") for name, shape, gguf in modules]
            layouts += layouts_of(placed, biased=False)
        return layouts

    def gguf_architecture(self) -> str:
        """llama.cpp's name for it."""
        return "phi3"

    def gguf_metadata(self, config: ModelConfig) -> dict[str, MetadataValue]:
        """As llama.cpp's converter writes them (conversion/phi.py)."""
        architecture = self.gguf_architecture()
        metadata: dict[str, MetadataValue] = {}
        if config.rope.type == "longrope":
            metadata[f"{architecture}.rope.scaling.attn_factor"] = attention_factor(config)
        metadata[f"{architecture}.context_length"] = config.max_position_embeddings
        metadata[f"{architecture}.rope.scaling.original_context_length"] = config.original_context_length
        metadata |= phi_gguf_metadata(architecture, config)
        metadata[f"{architecture}.attention.layer_norm_rms_epsilon"] = config.norm_epsilon
        metadata[f"{architecture}.rope.dimension_count"] = config.rotated_width
        metadata[f"{architecture}.rope.freq_base"] = config.rope.theta
        metadata[FILE_TYPE] = 0
        # Zero means no sliding window, as in Phi-4; the runtime always attends to all tokens.
        metadata[f"{architecture}.attention.sliding_window"] = config.raw.get("sliding_window") or 0
        return metadata

    def gguf_extra_tensors(self, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
        """LongRoPE's two lists of frequency divisors."""
        return factor_tensors(config)

    def mlx_config(self, config: ModelConfig) -> dict[str, Any]:
        """With the original context at the top level, where mlx_lm's Phi-3 looks for it."""
        return {**common_mlx_config(config), "original_max_position_embeddings": config.original_context_length}

    def default_context_length(self, config: ModelConfig) -> int:
        """The original context, which a LongRoPE model's short factors are for; at most 8,192 tokens."""
        return min(config.original_context_length, DEFAULT_CONTEXT_LENGTH_TOKENS)


def _sliding_window_caveats(config: ModelConfig) -> tuple[str, ...]:
    """For models that were trained with a sliding window, which no runtime uses."""
    window = config.raw.get("sliding_window") or config.max_position_embeddings
    if window >= config.max_position_embeddings:
        return ()
    return (f"The model was trained to attend to the last {window} tokens; in both runtimes it attends to all.",)


FAMILY = Phi3()
