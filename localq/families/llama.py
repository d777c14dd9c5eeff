"""Llama 2, 3, 3.1, 3.2 (text) and 3.3, and whatever else is a LlamaForCausalLM."""

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
from localq.families.config import ModelConfig, positive_number
from localq.options import DEFAULT_CONTEXT_LENGTH_TOKENS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROPE_PARAMETERS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Rotary scalings and the settings that each needs."""

_Projection = tuple[str, tuple[int, int], str, int | None]  # name, shape, GGUF name, heads whose rows are rotated


class Llama:
    """Separate q, k and v projections, RMS norms, SwiGLU."""

    name = "Llama"

    def check(self, config: ModelConfig) -> None:
        """Refuse the variants that the two runtimes don't run, or not alike."""
        check_common(self.name, config, "llama", tuple(_ROPE_PARAMETERS))
        if config.rope.partial_rotary_factor != 1:
            raise UnsupportedModelError(
                f"Llama that rotates {config.rope.partial_rotary_factor} of each head is not supported", "supported: 1"
            )
        for name in _ROPE_PARAMETERS[config.rope.type]:
            positive_number(config.rope.parameters, name)
        if config.rope.type == "llama3":
            low, high = (config.rope.parameters[f"{band}_freq_factor"] for band in ("low", "high"))
            if low >= high:
                raise CheckpointError(
                    f"config.json: low_freq_factor is {low}, not below the high_freq_factor {high}",
                    "take config.json from the model's page again",
                )

    def tensors(self, config: ModelConfig) -> list[TensorLayout]:
        """Every tensor, with biases where the config asks for them."""
        layouts = embedding_layouts(config)
        for layer in range(config.layer_count):
            layouts += self._layer(config, f"model.layers.{layer}", f"blk.{layer}")
        return layouts

    def _layer(self, config: ModelConfig, source: str, target: str) -> list[TensorLayout]:
        hidden, inner = config.hidden_size, config.intermediate_size
        query, key = config.head_count * config.head_dim, config.kv_head_count * config.head_dim
        heads, kv_heads = config.head_count, config.kv_head_count
        attention: list[_Projection] = [
            ("self_attn.q_proj", (query, hidden), "attn_q", heads),
            ("self_attn.k_proj", (key, hidden), "attn_k", kv_heads),
            ("self_attn.v_proj", (key, hidden), "attn_v", None),
            ("self_attn.o_proj", (hidden, query), "attn_output", None),
        ]
        feed_forward: list[_Projection] = [
            ("mlp.gate_proj", (inner, hidden), "ffn_gate", None),
            ("mlp.up_proj", (inner, hidden), "ffn_up", None),
            ("mlp.down_proj", (hidden, inner), "ffn_down", None),
        ]
        layouts = [
            TensorLayout(f"{source}.input_layernorm.weight", (hidden,), f"{target}.attn_norm.weight"),
            TensorLayout(f"{source}.post_attention_layernorm.weight", (hidden,), f"{target}.ffn_norm.weight"),
        ]
        biased = [(attention, config.raw.get("attention_bias")), (feed_forward, config.raw.get("mlp_bias"))]
        for projections, has_bias in biased:
            for name, shape, gguf, rope_heads in projections:
                weight = (f"{source}.{name}.weight", shape, f"{target}.{gguf}.weight")
                layouts.append(TensorLayout(*weight, rope_head_count=rope_heads))
                if has_bias:
                    bias = (f"{source}.{name}.bias", shape[:1], f"{target}.{gguf}.bias")
                    layouts.append(TensorLayout(*bias, rope_head_count=rope_heads))
        return layouts

    def gguf_architecture(self) -> str:
        """llama.cpp's name of it."""
        return "llama"

    def gguf_metadata(self, config: ModelConfig) -> dict[str, MetadataValue]:
        """As llama.cpp's converter writes them (conversion/llama.py)."""
        metadata = common_gguf_metadata("llama", config)
        metadata["llama.vocab_size"] = config.vocabulary_size
        metadata["llama.rope.dimension_count"] = config.head_dim
        metadata["llama.attention.key_length"] = config.head_dim
        metadata["llama.attention.value_length"] = config.head_dim
        if config.rope.type == "linear":
            metadata["llama.rope.scaling.type"] = "linear"
            metadata["llama.rope.scaling.factor"] = float(config.rope.parameters["factor"])
        return metadata

    def gguf_extra_tensors(self, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
        """The divisors of the rotary frequencies, where the model uses Llama 3's scaling."""
        if config.rope.type != "llama3":
            return {}
        return {"rope_freqs.weight": _llama3_frequency_factors(config)}

    def mlx_config(self, config: ModelConfig) -> dict[str, Any]:
        """The common one: mlx_lm's Llama needs nothing else."""
        return common_mlx_config(config)

    def default_context_length(self, config: ModelConfig) -> int:
        """The model's maximum, at most 8,192 tokens."""
        return min(config.max_position_embeddings, DEFAULT_CONTEXT_LENGTH_TOKENS)


def _llama3_frequency_factors(config: ModelConfig) -> NDArray[np.float32]:
    """By how much each rotary frequency is divided: shape (head_dim / 2,).

    Llama 3.1's rule (transformers' `_compute_llama3_parameters`): wavelengths below
    original / high_freq_factor keep their frequency, those above original / low_freq_factor are divided by
    `factor`, those between are blended. Single precision, each quotient taken as a product with the
    reciprocal, as torch does for llama.cpp's converter: so the bytes are the same.
    """
    import numpy as np

    factor, low, high, original = (config.rope.parameters[name] for name in _ROPE_PARAMETERS["llama3"])
    one = np.float32(1)
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = one / np.power(np.float32(config.rope.theta), exponents)
    wavelengths = (one / frequencies) * np.float32(2 * math.pi)
    smooth = ((one / wavelengths) * np.float32(original) - np.float32(low)) / np.float32(high - low)
    blended = one / ((one - smooth) / np.float32(factor) + smooth)
    divided = np.where(wavelengths > original / low, np.float32(factor), blended)
    return np.where(wavelengths < original / high, one, divided).astype(np.float32)


FAMILY = Llama()
