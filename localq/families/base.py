"""What a family of models defines: its tensors, its GGUF names and metadata, its MLX config.

A family knows shapes and names. It reads no file and quantizes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from localq.errors import UnsupportedModelError
from localq.families.config import ModelConfig
from localq.options import DEFAULT_CONTEXT_LENGTH_TOKENS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MetadataValue = str | bool | int | float
"""A value of GGUF metadata: str, bool, uint32 and float32 in the file."""


FILE_TYPE = "general.file_type"
"""Among the hyperparameters it marks a place; each format has a value of its own."""


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """One tensor of a model: its name in the checkpoint and in a GGUF file, and its shape."""

    name: str
    shape: tuple[int, ...]
    """(rows, columns) of a matrix, (length,) of a vector, (number, rows, columns) of a stack."""
    gguf_name: str
    rope_head_count: int | None = None
    """The number of heads where rows change order: Hugging Face rotates the first half of a head with the second,
    GGUF's Llama rotates neighbours. None where the order stays."""
    parts: tuple[str, ...] = ()
    """The checkpoint's tensors of shape `shape[1:]` of which this one is the stack, such as a layer's experts.
    Empty where the checkpoint has the tensor itself."""
    mlx_name: str | None = None
    """Its name in an MLX folder, where it differs from `name`."""
    is_float32_in_gguf: bool = False
    """A matrix that llama.cpp always keeps in single precision, such as a router's."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The names that the checkpoint must have."""
        return self.parts or (self.name,)


class Family(Protocol):
    """What is particular to one architecture. Families inherit what most of them do in the same way."""

    name: str
    """For people: `Llama`, `Phi-3`."""
    formats: tuple[str, ...] = ("mlx", "gguf")
    """The formats that have a runtime for it; without `gguf`, the GGUF methods raise UnsupportedModelError."""

    def check(self, config: ModelConfig) -> None:
        """Raise UnsupportedModelError or CheckpointError for a variant that can't be converted correctly."""

    def caveats(self, config: ModelConfig) -> tuple[str, ...]:
        """Sentences on where a runtime differs from the model's reference, for people to read."""
        return ()

    def tensors(self, config: ModelConfig) -> list[TensorLayout]:
        """Every tensor that the checkpoint must have."""

    def gguf_architecture(self) -> str:
        """`general.architecture`."""

    def gguf_metadata(self, config: ModelConfig) -> dict[str, MetadataValue]:
        """Hyperparameters under their full GGUF keys, in the order of llama.cpp's converter, with FILE_TYPE."""

    def gguf_extra_tensors(self, config: ModelConfig) -> dict[str, NDArray[np.float32]]:
        """Tensors that GGUF needs and the checkpoint does not have, such as rotary frequency factors."""
        return {}

    def mlx_config(self, config: ModelConfig) -> dict[str, Any]:
        """`config.json` of an MLX artifact: the checkpoint's, changed where mlx_lm needs it."""
        return common_mlx_config(config)

    def default_context_length(self, config: ModelConfig) -> int:
        """Length of a context in tokens where no other is given: the maximum, at most 8,192."""
        return min(config.max_position_embeddings, DEFAULT_CONTEXT_LENGTH_TOKENS)


@dataclass(frozen=True, slots=True)
class Traits:
    """What the runtimes support for a family. Each tuple lists the supported values."""

    model_type: str
    """By which MLX chooses its class."""
    rope_types: tuple[str, ...]
    activation: str = "silu"
    own_head_dim: bool = False
    """Whether the width of a head may differ from hidden_size / num_attention_heads."""
    partial_rotary: bool = False
    """Whether only a part of each head may be rotated."""
    tied_embeddings: tuple[bool, ...] = (True, False)


def check_traits(family: str, config: ModelConfig, traits: Traits) -> None:
    """Refuse what the family's runtimes do not support; the error names it and what they support."""
    natural_head_dim = config.hidden_size / config.head_count
    compared: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("model type", config.model_type, (traits.model_type,)),
        ("activation", config.raw.get("hidden_act", traits.activation), (traits.activation,)),
        ("rotary scaling", config.rope.type, traits.rope_types),
        ("tied embeddings", config.tied_embeddings, traits.tied_embeddings),
    ]
    if not traits.own_head_dim:
        compared.append(("head width", config.head_dim, (natural_head_dim,)))
    if not traits.partial_rotary:
        compared.append(("rotated share of each head", config.rope.partial_rotary_factor, (1.0,)))
    for trait, value, supported in compared:
        refuse_unless(family, trait, value, supported)


def refuse_unless(family: str, trait: str, value: object, supported: tuple[object, ...]) -> None:
    """Raise UnsupportedModelError that names the trait, its value and the values that are supported."""
    if value not in supported:
        shown = ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in supported)
        raise UnsupportedModelError(f"{family} with {trait} {value!r} is not supported", f"supported: {shown}")


Module = tuple[str, tuple[int, ...], str]
"""Of a projection or a norm: name in the checkpoint, shape of the weight, name in a GGUF file."""


def layouts_of(modules: Iterable[Module], *, biased: bool) -> list[TensorLayout]:
    """Weights of modules, each followed by its bias if they are biased."""
    layouts = []
    for name, shape, gguf_name in modules:
        layouts.append(TensorLayout(f"{name}.weight", shape, f"{gguf_name}.weight"))
        if biased:
            layouts.append(TensorLayout(f"{name}.bias", shape[:1], f"{gguf_name}.bias"))
    return layouts


def outer_layouts(config: ModelConfig, *, norm: str = "model.norm", biased: bool = False) -> list[TensorLayout]:
    """The tensors outside the layers: embedding, last norm, and the output layer unless it is the embedding."""
    vocabulary = (config.vocabulary_size, config.hidden_size)
    modules: list[Module] = [(norm, (config.hidden_size,), "output_norm")]
    if not config.tied_embeddings:
        modules.append(("lm_head", vocabulary, "output"))
    embedding = TensorLayout("model.embed_tokens.weight", vocabulary, "token_embd.weight")
    return [embedding, *layouts_of(modules, biased=biased)]


def phi_gguf_metadata(architecture: str, config: ModelConfig) -> dict[str, MetadataValue]:
    """The same as `common_gguf_metadata`, in the order that llama.cpp's converter has for the Phi families."""
    common = common_gguf_metadata(architecture, config)
    first = ("context_length", "embedding_length", "feed_forward_length", "block_count")
    return {f"{architecture}.{name}": common[f"{architecture}.{name}"] for name in first} | common


def common_gguf_metadata(architecture: str, config: ModelConfig) -> dict[str, MetadataValue]:
    """Hyperparameters that every family writes, in the order of llama.cpp's converter for Llama."""
    return {
        f"{architecture}.block_count": config.layer_count,
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.head_count,
        f"{architecture}.attention.head_count_kv": config.kv_head_count,
    }


def common_mlx_config(config: ModelConfig) -> dict[str, Any]:
    """The checkpoint's config with the keys of both transformers generations.

    mlx_lm's Llama and Phi classes read only `rope_theta` and `rope_scaling`, and its Llama ties the
    embeddings where the key is missing, so these are always written out.
    """
    mlx: dict[str, Any] = {k: v for k, v in config.raw.items() if k not in ("quantization", "quantization_config")}
    if mlx.get("text_config", {}) is None:  # mlx_lm fails on it
        del mlx["text_config"]
    mlx["architectures"] = [config.architecture]
    mlx["max_position_embeddings"] = config.max_position_embeddings
    mlx["tie_word_embeddings"] = config.tied_embeddings
    mlx["num_key_value_heads"] = config.kv_head_count
    mlx["rope_theta"] = config.rope.theta
    mlx["partial_rotary_factor"] = config.rope.partial_rotary_factor
    mlx.pop("rope_scaling", None)  # mlx_lm's Phi-3 refuses a scaling of type `default`
    if config.rope.type != "default":
        mlx["rope_scaling"] = {**config.rope.parameters, "type": config.rope.type, "rope_type": config.rope.type}
    return mlx


def is_rotary_table(tensor_name: str) -> bool:
    """Whether it is a table that old versions of transformers saved and every runtime computes itself."""
    return tensor_name.endswith(".rotary_emb.inv_freq")
