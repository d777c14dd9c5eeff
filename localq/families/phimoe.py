"""Phi-3.5-MoE and Phi-mini-MoE, under both class names: Microsoft's and transformers'."""

from __future__ import annotations

from localq.errors import CheckpointError
from localq.families.base import (
    MetadataValue,
    Module,
    TensorLayout,
    Traits,
    check_traits,
    layouts_of,
    outer_layouts,
    refuse_unless,
)
from localq.families.config import HINT, ModelConfig, positive_integer, positive_number
from localq.families.longrope import attention_factor, check_longrope
from localq.families.phi3 import Phi3

_TRAITS = Traits("phimoe", ("default", "longrope"), tied_embeddings=(False,))
_EXPERTS_PER_TOKEN = 2  # sparsemixer, the reference's routing, takes exactly these
_LLAMA_CPP_MOST_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
_GGUF_CAVEAT = (
    "PhiMoE was trained with sparsemixer routing and layer norms, and MLX runs it with them; llama.cpp runs it with "
    "softmax routing and RMS norms. Answers from GGUF differ noticeably from the reference at every precision."
)
_GGUF_SCALE_CAVEAT = (
    "GGUF has LongRoPE's scale as llama.cpp's converter derives it, {derived:.3f}; the model's config has {stated:.3f}."
)


class PhiMoe(Phi3):
    """Layer norms, biases in the attention, and per token two of a layer's feed-forward networks (experts)."""

    name = "PhiMoE"

    def check(self, config: ModelConfig) -> None:
        """Refuse the variants that the two runtimes do not run, or run differently."""
        check_traits(self.name, config, _TRAITS)
        for key in ("attention_bias", "lm_head_bias"):
            refuse_unless(self.name, key, config.raw.get(key, True), (True,))
        routed = config.raw.get("num_experts_per_tok", _EXPERTS_PER_TOKEN)
        refuse_unless(self.name, "num_experts_per_tok", routed, (_EXPERTS_PER_TOKEN,))
        if not _EXPERTS_PER_TOKEN <= _expert_count(config) <= _LLAMA_CPP_MOST_EXPERTS:
            raise CheckpointError(f'config.json: "num_local_experts" is {_expert_count(config)}', HINT)
        if config.raw.get("sliding_window"):
            positive_integer(config.raw, "sliding_window")
        if config.rope.type == "longrope":
            check_longrope(config, config.rotated_width, ("factor", "attention_factor"))
            # A GGUF file has room for one scale.
            long = positive_number(config.rope.parameters, "long_mscale")
            short = positive_number(config.rope.parameters, "short_mscale")
            refuse_unless(self.name, f"long_mscale {long} and short_mscale", short, (long,))

    def caveats(self, config: ModelConfig) -> tuple[str, ...]:
        """What llama.cpp computes differently: with random weights, three of four top tokens differ."""
        stated, derived = config.rope.parameters.get("short_mscale"), attention_factor(config)
        scale = _GGUF_SCALE_CAVEAT.format(derived=derived, stated=stated) if stated not in (None, derived) else ""
        return (_GGUF_CAVEAT, *filter(None, [scale]), *super().caveats(config))

    def tensors(self, config: ModelConfig) -> list[TensorLayout]:
        """Every tensor; the experts' are stacked, as both runtimes need them."""
        layouts = outer_layouts(config, biased=True)
        for layer in range(config.layer_count):
            layouts += _layer(config, f"model.layers.{layer}", f"blk.{layer}")
        return layouts

    def gguf_architecture(self) -> str:
        """llama.cpp's name for it."""
        return "phimoe"

    def gguf_metadata(self, config: ModelConfig) -> dict[str, MetadataValue]:
        """Phi-3's, and the number of experts."""
        metadata = super().gguf_metadata(config)
        metadata["phimoe.expert_used_count"] = _EXPERTS_PER_TOKEN
        metadata["phimoe.expert_count"] = _expert_count(config)
        return metadata


def _expert_count(config: ModelConfig) -> int:
    return positive_integer(config.raw, "num_local_experts")


def _layer(config: ModelConfig, source: str, target: str) -> list[TensorLayout]:
    hidden, key = config.hidden_size, config.kv_head_count * config.head_dim
    modules: list[Module] = [
        (f"{source}.self_attn.q_proj", (hidden, hidden), f"{target}.attn_q"),
        (f"{source}.self_attn.k_proj", (key, hidden), f"{target}.attn_k"),
        (f"{source}.self_attn.v_proj", (key, hidden), f"{target}.attn_v"),
        (f"{source}.self_attn.o_proj", (hidden, hidden), f"{target}.attn_output"),
        (f"{source}.input_layernorm", (hidden,), f"{target}.attn_norm"),
        (f"{source}.post_attention_layernorm", (hidden,), f"{target}.ffn_norm"),
    ]
    return layouts_of(modules, biased=True) + _experts(config, f"{source}.block_sparse_moe", target)


def _experts(config: ModelConfig, source: str, target: str) -> list[TensorLayout]:
    """The router, and each projection of all experts as one stack with mlx_lm's name."""
    count, hidden, inner = _expert_count(config), config.hidden_size, config.intermediate_size
    projections = [
        ("w1", "gate_proj", (inner, hidden), "ffn_gate_exps"),
        ("w3", "up_proj", (inner, hidden), "ffn_up_exps"),
        ("w2", "down_proj", (hidden, inner), "ffn_down_exps"),
    ]
    router = TensorLayout(
        f"{source}.gate.weight", (count, hidden), f"{target}.ffn_gate_inp.weight", is_float32_in_gguf=True
    )
    stacks = [
        TensorLayout(
            f"{source}.switch_mlp.{name}.weight",
            (count, *shape),
            f"{target}.{gguf_name}.weight",
            parts=tuple(f"{source}.experts.{expert}.{part}.weight" for expert in range(count)),
        )
        for part, name, shape, gguf_name in projections
    ]
    return [router, *stacks]


FAMILY = PhiMoe()
