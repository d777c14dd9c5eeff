"""Llama 1, 2, 3, 3.1, 3.2 (text) and 3.3, CodeLlama, and others with Llama's network, such as llamafied Phi-4."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from localq.errors import CheckpointError, UnsupportedModelError
from localq.families.base import (
    FILE_TYPE,
    Family,
    MetadataValue,
    Module,
    TensorLayout,
    Traits,
    check_traits,
    common_gguf_metadata,
    common_mlx_config,
    layouts_of,
    outer_layouts,
    refuse_unless,
)
from localq.families.config import HINT, ModelConfig, positive_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROPE_PARAMETERS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Rotary scalings and the settings that each needs."""

_YARN_SETTINGS: dict[str, Any] = {
    "beta_fast": 32,
    "beta_slow": 1,
    "truncate": True,
    "extrapolation_factor": 1,
    "mscale": 1,
    "mscale_all_dim": 0,
}
"""YaRN's other settings with the values that both runtimes always take."""
_TRAITS = Traits("llama", tuple(_ROPE_PARAMETERS), own_head_dim=True)


class Llama(Family):
    """Separate q, k and v projections, RMS norms, SwiGLU."""

    name = "Llama"

    def check(self, config: ModelConfig) -> None:
        """Refuse the variants that the two runtimes do not run, or run differently."""
        check_traits(self.name, config, _TRAITS)
        if "draft_vocab_size" in config.raw:
            raise UnsupportedModelError(
                "this Llama is a draft head for speculative decoding, not a complete model",
                "convert the model that it drafts for",
            )
        layer_types = config.raw.get("layer_types") or []
        for layer_type in layer_types if isinstance(layer_types, list) else [layer_types]:
            refuse_unless(self.name, "layer type", layer_type, ("full_attention",))
        for name in _ROPE_PARAMETERS[config.rope.type]:
            positive_number(config.rope.parameters, name)
        if config.rope.type == "llama3":
            _check_llama3(config)
        if config.rope.type == "yarn":
            _check_yarn(config)

    def caveats(self, config: ModelConfig) -> tuple[str, ...]:
        """How long a context may be with dynamic scaling."""
        if config.rope.type != "dynamic":
            return ()
        return (
            f"Dynamic rotary scaling begins beyond {config.max_position_embeddings} tokens, "
            "where the two runtimes differ: contexts end there.",
        )

    def tensors(self, config: ModelConfig) -> list[TensorLayout]:
        """Every tensor, with biases where the config has them."""
        layouts = outer_layouts(config)
        for layer in range(config.layer_count):
            layouts += _layer(config, f"model.layers.{layer}", f"blk.{layer}")
        return layouts

    def gguf_architecture(self) -> str:
        """llama.cpp's name for it."""
        return "llama"

    def gguf_metadata(self, config: ModelConfig) -> dict[str, MetadataValue]:
        """As llama.cpp's converter writes them (conversion/llama.py)."""
        metadata = common_gguf_metadata("llama", config)
        if config.rope.type in ("linear", "yarn"):
            metadata["llama.rope.scaling.type"] = config.rope.type
            metadata["llama.rope.scaling.factor"] = float(config.rope.parameters["factor"])
        if config.rope.type == "yarn":
            metadata["llama.rope.scaling.original_context_length"] = config.original_context_length
            metadata |= _stated_yarn_settings(config)
        metadata["llama.rope.freq_base"] = config.rope.theta
        metadata["llama.attention.layer_norm_rms_epsilon"] = config.norm_epsilon
        metadata["llama.attention.key_length"] = config.head_dim
        metadata["llama.attention.value_length"] = config.head_dim
        metadata[FILE_TYPE] = 0
        metadata["llama.vocab_size"] = config.vocabulary_size
        metadata["llama.rope.dimension_count"] = config.head_dim
        return metadata

    def gguf_extra_tensors(self, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
        """The divisors of the rotary frequencies, where the model uses Llama 3's scaling."""
        if config.rope.type != "llama3":
            return {}
        import numpy as np

        with np.errstate(all="ignore"):  # absurd settings are refused below
            factors = _llama3_frequency_factors(config)
        if not np.isfinite(factors).all():
            raise CheckpointError("config.json: the rotary scaling gives frequencies that are not numbers", HINT)
        return {"rope_freqs.weight": factors}

    def mlx_config(self, config: ModelConfig) -> dict[str, Any]:
        """Without the list of layer types: mlx_lm would count the layers by it."""
        mlx = common_mlx_config(config)
        mlx.pop("layer_types", None)
        return mlx


def _layer(config: ModelConfig, source: str, target: str) -> list[TensorLayout]:
    hidden, inner = config.hidden_size, config.intermediate_size
    query, key = config.head_count * config.head_dim, config.kv_head_count * config.head_dim
    rotated: list[tuple[Module, int]] = [
        ((f"{source}.self_attn.q_proj", (query, hidden), f"{target}.attn_q"), config.head_count),
        ((f"{source}.self_attn.k_proj", (key, hidden), f"{target}.attn_k"), config.kv_head_count),
    ]
    attention: list[Module] = [
        (f"{source}.self_attn.v_proj", (key, hidden), f"{target}.attn_v"),
        (f"{source}.self_attn.o_proj", (hidden, query), f"{target}.attn_output"),
    ]
    feed_forward: list[Module] = [
        (f"{source}.mlp.gate_proj", (inner, hidden), f"{target}.ffn_gate"),
        (f"{source}.mlp.up_proj", (inner, hidden), f"{target}.ffn_up"),
        (f"{source}.mlp.down_proj", (hidden, inner), f"{target}.ffn_down"),
    ]
    norms: list[Module] = [
        (f"{source}.input_layernorm", (hidden,), f"{target}.attn_norm"),
        (f"{source}.post_attention_layernorm", (hidden,), f"{target}.ffn_norm"),
    ]
    biased = bool(config.raw.get("attention_bias"))
    layouts = layouts_of(norms, biased=False)
    for module, heads in rotated:
        layouts += [replace(layout, rope_head_count=heads) for layout in layouts_of([module], biased=biased)]
    layouts += layouts_of(attention, biased=biased)
    return layouts + layouts_of(feed_forward, biased=bool(config.raw.get("mlp_bias")))


def _check_llama3(config: ModelConfig) -> None:
    low, high = (config.rope.parameters[f"{band}_freq_factor"] for band in ("low", "high"))
    if low >= high:
        raise CheckpointError(
            f"config.json: low_freq_factor is {low}, not below the high_freq_factor {high}",
            HINT,
        )


def _stated_yarn_settings(config: ModelConfig) -> dict[str, MetadataValue]:
    """Settings of YaRN that llama.cpp's converter writes where the config has them, even if they are the defaults."""
    keys = {"extrapolation_factor": "ext_factor", "attention_factor": "attn_factor", "attn_factor": "attn_factor"}
    keys |= {"beta_fast": "beta_fast", "beta_slow": "beta_slow"}
    stated = config.rope.parameters
    return {f"llama.rope.scaling.yarn_{keys[name]}": float(stated[name]) for name in reversed(keys) if name in stated}


def _check_yarn(config: ModelConfig) -> None:
    """Refuse the settings of YaRN that one of the runtimes does not read.

    Both derive the scale of queries and keys from the factor, as transformers does where the config has no scale.
    """
    parameters = config.rope.parameters
    for name, taken in _YARN_SETTINGS.items():
        refuse_unless("Llama", f"YaRN's {name}", parameters.get(name, taken), (taken,))
    derived = 0.1 * math.log(max(1.0, parameters["factor"])) + 1
    for name in ("attention_factor", "attn_factor"):
        if not math.isclose(positive_number(parameters, name, derived), derived, rel_tol=1e-6):
            raise UnsupportedModelError(
                f"Llama with YaRN's {name} {parameters[name]} is not supported", f"supported: {derived:.6f}"
            )


def _llama3_frequency_factors(config: ModelConfig) -> NDArray[np.float32]:
    """The divisor of each rotary frequency: shape (head_dim / 2,).

    Llama 3.1's rule (transformers' `_compute_llama3_parameters`): wavelengths below
    original / high_freq_factor keep their frequency, those above original / low_freq_factor are divided by
    `factor`, those between are blended. In single precision, and with products of reciprocals instead of
    quotients, as torch does it for llama.cpp's converter: so the bytes are the same.
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
