"""What a family of models must tell: its tensors, its GGUF names and metadata, its MLX config.

A family knows shapes and names. It reads no file and quantizes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from localq.errors import UnsupportedModelError
from localq.families.config import ModelConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MetadataValue = str | bool | int | float
"""A value of GGUF metadata: str, bool, uint32 and float32 in the file."""


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """One tensor of a checkpoint and what it is called in a GGUF file."""

    name: str
    shape: tuple[int, ...]
    """As in the checkpoint: (rows, columns) of a matrix, (length,) of a vector."""
    gguf_name: str
    rope_head_count: int | None = None
    """Heads whose rows change order: Hugging Face rotates the halves of a head against each other, GGUF's
    Llama rotates neighbours. None where the order stays."""


class Family(Protocol):
    """What is particular to one architecture."""

    name: str
    """For people: `Llama`, `Phi-3`."""

    def check(self, config: ModelConfig) -> None:
        """Raise UnsupportedModelError or CheckpointError for a variant that can't be converted rightly."""

    def tensors(self, config: ModelConfig) -> list[TensorLayout]:
        """Every tensor that the checkpoint must have."""

    def gguf_architecture(self) -> str:
        """`general.architecture`."""

    def gguf_metadata(self, config: ModelConfig) -> dict[str, MetadataValue]:
        """Hyperparameters under their full GGUF keys."""

    def gguf_extra_tensors(self, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
        """Tensors that GGUF wants and the checkpoint has not, such as rotary frequency factors."""

    def mlx_config(self, config: ModelConfig) -> dict[str, Any]:
        """`config.json` of an MLX artifact: the checkpoint's own, with what mlx_lm needs put right."""

    def default_context_length(self, config: ModelConfig) -> int:
        """Tokens that a context has when nobody asks for another length."""


def check_common(family: str, config: ModelConfig, model_type: str, rope_types: tuple[str, ...]) -> None:
    """Refuse what no family's runtimes honour. MLX chooses its class by the model type, GGUF by the architecture."""
    activation = config.raw.get("hidden_act", "silu")
    traits = [
        ("model type", config.model_type, (model_type,)),
        ("activation", activation, ("silu",)),
        ("rotary scaling", config.rope.type, rope_types),
    ]
    for trait, value, supported in traits:
        if value not in supported:
            raise UnsupportedModelError(
                f"{family} with {trait} {value!r} is not supported", f"supported: {', '.join(supported)}"
            )


def embedding_layouts(config: ModelConfig) -> list[TensorLayout]:
    """The tensors outside the layers, equal in all families without biases."""
    outer = (config.vocabulary_size, config.hidden_size)
    layouts = [
        TensorLayout("model.embed_tokens.weight", outer, "token_embd.weight"),
        TensorLayout("model.norm.weight", (config.hidden_size,), "output_norm.weight"),
    ]
    if not config.tied_embeddings:
        layouts.append(TensorLayout("lm_head.weight", outer, "output.weight"))
    return layouts


def common_gguf_metadata(architecture: str, config: ModelConfig) -> dict[str, MetadataValue]:
    """Hyperparameters that every family writes in the same way."""
    return {
        f"{architecture}.block_count": config.layer_count,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.head_count,
        f"{architecture}.attention.head_count_kv": config.kv_head_count,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.norm_epsilon,
        f"{architecture}.rope.freq_base": config.rope.theta,
    }


def common_mlx_config(config: ModelConfig) -> dict[str, Any]:
    """The checkpoint's config with the keys of both transformers generations.

    mlx_lm's Llama and Phi classes read only `rope_theta` and `rope_scaling`, and its Llama ties the
    embeddings where the key is missing, so both are always written out.
    """
    mlx: dict[str, Any] = {k: v for k, v in config.raw.items() if k not in ("quantization", "quantization_config")}
    mlx["tie_word_embeddings"] = config.tied_embeddings
    mlx["num_key_value_heads"] = config.kv_head_count
    mlx["rope_theta"] = config.rope.theta
    mlx.pop("rope_scaling", None)  # mlx_lm's Phi-3 takes a scaling of type `default` for a broken one
    if config.rope.type != "default":
        mlx["rope_scaling"] = {**config.rope.parameters, "type": config.rope.type, "rope_type": config.rope.type}
    return mlx


def is_rotary_table(tensor_name: str) -> bool:
    """Whether a tensor is one that old versions of transformers saved, and every runtime computes for itself."""
    return tensor_name.endswith(".rotary_emb.inv_freq")
