"""Phi-3-small-8k: grouped query-key-value projection, GEGELU, block-sparse attention in every other layer.

Only MLX runs it. The reference is code in Microsoft's repository (modeling_phi3_small.py), which needs a CUDA GPU.
Refused are the settings with which mlx_lm's class, as its source shows, computes something else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from localq.errors import UnsupportedModelError
from localq.families.base import (
    Family,
    MetadataValue,
    Module,
    TensorLayout,
    Traits,
    check_traits,
    common_mlx_config,
    layouts_of,
    refuse_unless,
)
from localq.families.config import ModelConfig, positive_integer, positive_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_VOCABULARY_SIZE = 100_352  # mlx_lm masks ids up to this one
_BLOCK_SIZES = (32, 64)
_SLOW_PROMPTS = (
    "mlx_lm's Phi-3-small lets earlier tokens of a pass attend to later ones, so prompts are computed token by token: "
    "a prompt takes as long as a reply of the same length."
)
_TRAITS = Traits("phi3small", ("default",), activation="gegelu", tied_embeddings=(True,))
_DEFAULTS: dict[str, Any] = {
    "blocksparse_homo_head_pattern": False,
    "blocksparse_block_size": 64,
    "blocksparse_num_local_blocks": 16,
    "blocksparse_vert_stride": 8,
    "dense_attention_every_n_layers": 2,
    "gegelu_limit": 20.0,
    "mup_use_scaling": True,
    "mup_attn_multiplier": 1.0,
    "mup_embedding_multiplier": 10.0,
    "mup_width_multiplier": 8.0,
    "rope_position_scale": 1.0,
}
"""The values of Microsoft's configuration class for keys that a config lacks."""


class Phi3Small(Family):
    """Layer norms, biases, and an output layer that is the embedding."""

    name = "Phi-3-small"
    formats = ("mlx",)

    def caveats(self, config: ModelConfig) -> tuple[str, ...]:
        """That prompts are slow: token by token, mlx_lm's block-sparse attention equals the reference's."""
        return (_SLOW_PROMPTS,)

    def check(self, config: ModelConfig) -> None:
        """Refuse what mlx_lm computes differently from the reference: LongRoPE first of all."""
        if config.rope.type == "longrope":
            raise UnsupportedModelError(
                "Phi-3-small with LongRoPE is not supported: MLX would ignore it and compute wrong positions",
                "take Phi-3-small-8k-instruct",
            )
        check_traits(self.name, config, _TRAITS)
        settings = _settings(config)
        stride = positive_integer(settings, "blocksparse_vert_stride")
        supported: list[tuple[str, tuple[Any, ...]]] = [
            ("blocksparse_homo_head_pattern", (False,)),
            ("blocksparse_block_size", _BLOCK_SIZES),
            ("dense_attention_every_n_layers", (2,)),
            ("rope_position_scale", (1.0,)),
        ]
        for name, values in supported:
            refuse_unless(self.name, name, settings[name], values)
        refuse_unless(self.name, "vocabulary size", config.vocabulary_size, (_VOCABULARY_SIZE,))
        if stride >= 2 * config.head_count:
            # With larger strides the reference gives the heads other patterns of blocks.
            raise UnsupportedModelError(
                f"Phi-3-small with blocksparse_vert_stride {stride} and {config.head_count} heads is not supported",
                f"supported: strides below {2 * config.head_count}",
            )
        for name in (
            "gegelu_limit",
            "blocksparse_num_local_blocks",
            *(n for n in _DEFAULTS if n.endswith("multiplier")),
        ):
            positive_number(settings, name)

    def tensors(self, config: ModelConfig) -> list[TensorLayout]:
        """Every tensor; none has a name in a GGUF file."""
        hidden, inner = config.hidden_size, config.intermediate_size
        width = (config.head_count + 2 * config.kv_head_count) * config.head_dim
        modules: list[Module] = [("model.final_layernorm", (hidden,), "")]
        for layer in range(config.layer_count):
            source = f"model.layers.{layer}"
            modules += [
                (f"{source}.self_attn.query_key_value", (width, hidden), ""),
                (f"{source}.self_attn.dense", (hidden, hidden), ""),
                (f"{source}.mlp.up_proj", (2 * inner, hidden), ""),
                (f"{source}.mlp.down_proj", (hidden, inner), ""),
                (f"{source}.input_layernorm", (hidden,), ""),
                (f"{source}.post_attention_layernorm", (hidden,), ""),
            ]
        embedding = TensorLayout("model.embed_tokens.weight", (config.vocabulary_size, hidden), "")
        return [embedding, *layouts_of(modules, biased=True)]

    def gguf_architecture(self) -> str:
        """There is none."""
        _refuse_gguf()

    def gguf_metadata(self, config: ModelConfig) -> dict[str, MetadataValue]:
        """There is none."""
        _refuse_gguf()

    def gguf_extra_tensors(self, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
        """There are none."""
        _refuse_gguf()

    def mlx_config(self, config: ModelConfig) -> dict[str, Any]:
        """With the settings for which mlx_lm has no defaults."""
        return {**common_mlx_config(config), **_settings(config)}


def _settings(config: ModelConfig) -> dict[str, Any]:
    """The config's values of the keys in `_DEFAULTS`, else the default."""
    return {name: config.raw.get(name, default) for name, default in _DEFAULTS.items()}


def _refuse_gguf() -> NoReturn:
    raise UnsupportedModelError(
        "Phi-3-small can't be converted to GGUF: llama.cpp does not have its block-sparse attention",
        "convert it with --to mlx-4bit",
    )


FAMILY = Phi3Small()
