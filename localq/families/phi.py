"""Phi-1, Phi-1.5 and Phi-2: every PhiForCausalLM."""

from __future__ import annotations

from localq.families.base import (
    FILE_TYPE,
    Family,
    MetadataValue,
    Module,
    TensorLayout,
    Traits,
    check_traits,
    layouts_of,
    outer_layouts,
    phi_gguf_metadata,
    refuse_unless,
)
from localq.families.config import ModelConfig

_LLAMA_CPP_THETA = 10_000.0
_TRAITS = Traits("phi", ("default",), activation="gelu_new", partial_rotary=True, tied_embeddings=(False,))


class Phi(Family):
    """Attention and feed-forward in parallel after one norm, biases everywhere, a part of each head rotated."""

    name = "Phi"

    def check(self, config: ModelConfig) -> None:
        """Refuse the variants that the two runtimes do not run, or run differently."""
        check_traits(self.name, config, _TRAITS)
        refuse_unless(self.name, "qk_layernorm", config.raw.get("qk_layernorm", False), (False,))

    def tensors(self, config: ModelConfig) -> list[TensorLayout]:
        """Every tensor; all except the embedding have a bias."""
        hidden, inner = config.hidden_size, config.intermediate_size
        key = config.kv_head_count * config.head_dim
        modules: list[Module] = [
            ("self_attn.q_proj", (hidden, hidden), "attn_q"),
            ("self_attn.k_proj", (key, hidden), "attn_k"),
            ("self_attn.v_proj", (key, hidden), "attn_v"),
            ("self_attn.dense", (hidden, hidden), "attn_output"),
            ("mlp.fc1", (inner, hidden), "ffn_up"),
            ("mlp.fc2", (hidden, inner), "ffn_down"),
            ("input_layernorm", (hidden,), "attn_norm"),
        ]
        layouts = outer_layouts(config, norm="model.final_layernorm", biased=True)
        for layer in range(config.layer_count):
            placed = [(f"model.layers.{layer}.{name}", shape, f"blk.{layer}.{gguf}") for name, shape, gguf in modules]
            layouts += layouts_of(placed, biased=True)
        return layouts

    def gguf_architecture(self) -> str:
        """llama.cpp's name for it, also for Phi-1."""
        return "phi2"

    def gguf_metadata(self, config: ModelConfig) -> dict[str, MetadataValue]:
        """As llama.cpp's converter writes them (conversion/phi.py), and what it assumes.

        The runtime reads the inner width, the key-value heads and the rotary base; the converter assumes 4 times the
        width, one for each head and 10,000, as in all of Microsoft's models.
        """
        metadata = phi_gguf_metadata("phi2", config)
        metadata["phi2.attention.layer_norm_epsilon"] = config.norm_epsilon
        metadata["phi2.rope.dimension_count"] = config.rotated_width
        metadata[FILE_TYPE] = 0
        metadata["tokenizer.ggml.add_bos_token"] = False
        if config.rope.theta != _LLAMA_CPP_THETA:
            metadata["phi2.rope.freq_base"] = config.rope.theta
        return metadata


FAMILY = Phi()
