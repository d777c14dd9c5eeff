"""A checkpoint's `config.json`, read into one shape whichever transformers version wrote it.

transformers 4 writes `rope_theta` and `rope_scaling` (with `type` or `rope_type`) at the top level;
transformers 5 writes `rope_parameters`. Both end up in `Rope`. Knows no weights and no architecture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localq.errors import CheckpointError

_DEFAULT_ROPE_THETA = 10_000.0  # transformers' default where a config says nothing
_ORIGINAL_CONTEXT = "original_max_position_embeddings"
_HINT = "take config.json from the model's page again"


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding."""

    theta: float
    type: str
    """`default`, `linear`, `llama3` or `longrope`, as transformers calls them."""
    parameters: Mapping[str, Any]
    """The rest of the scaling settings, as the checkpoint gives them."""
    partial_rotary_factor: float = 1.0
    """Share of each head's width that is rotated."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What every family needs to know about a checkpoint."""

    architecture: str
    model_type: str
    hidden_size: int
    intermediate_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    head_dim: int
    vocabulary_size: int
    max_position_embeddings: int
    norm_epsilon: float
    rope: Rope
    tied_embeddings: bool
    """Whether the output layer shares the embedding's weights."""
    raw: Mapping[str, Any]
    """The whole `config.json`."""

    @property
    def original_context_length(self) -> int:
        """Context in tokens that the model was first trained on: below the maximum for LongRoPE models."""
        return int(self.rope.parameters.get(_ORIGINAL_CONTEXT, self.max_position_embeddings))


def architecture_of(raw: Mapping[str, Any]) -> str:
    """The class name in `architectures`; raises CheckpointError where there is none."""
    names = raw.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(
            'config.json has no "architectures"',
            "it should name the model's class, such as LlamaForCausalLM",
        )
    return names[0]


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Read a config; raises CheckpointError that names the missing or impossible key."""
    head_count = positive_integer(raw, "num_attention_heads")
    hidden_size = positive_integer(raw, "hidden_size")
    config = ModelConfig(
        architecture=architecture_of(raw),
        model_type=_key(raw, "model_type", str),
        hidden_size=hidden_size,
        intermediate_size=positive_integer(raw, "intermediate_size"),
        layer_count=positive_integer(raw, "num_hidden_layers"),
        head_count=head_count,
        kv_head_count=positive_integer(raw, "num_key_value_heads", head_count),
        head_dim=positive_integer(raw, "head_dim", hidden_size // head_count),
        vocabulary_size=positive_integer(raw, "vocab_size"),
        max_position_embeddings=positive_integer(raw, "max_position_embeddings"),
        norm_epsilon=positive_number(raw, "rms_norm_eps"),
        rope=_parse_rope(raw),
        # The Llama and Phi classes of transformers don't tie unless the config says so.
        tied_embeddings=_boolean(raw, "tie_word_embeddings", False),
        raw=raw,
    )
    if head_count % config.kv_head_count:
        message = (
            f'config.json: "num_key_value_heads" is {config.kv_head_count}, which does not divide {head_count} heads'
        )
        raise CheckpointError(message, _HINT)
    if config.head_dim % 2:
        raise CheckpointError(f'config.json: "head_dim" is {config.head_dim}; rotary embedding needs pairs', _HINT)
    return config


def positive_integer(settings: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A number of `config.json`; raises CheckpointError that names the key when it is missing or no such number."""
    return int(_positive(settings, name, int, default))


def positive_number(settings: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """As `positive_integer`, for a finite number with a fraction."""
    return float(_positive(settings, name, (int, float), default))


def _parse_rope(raw: Mapping[str, Any]) -> Rope:
    scaling = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        raise CheckpointError(f"config.json: rope_scaling is {scaling!r}, not an object", _HINT)
    parameters = {key: value for key, value in scaling.items() if value is not None}
    kind = parameters.get("rope_type") or parameters.get("type")
    if kind is None and parameters.keys() - {"rope_theta", "partial_rotary_factor", _ORIGINAL_CONTEXT}:
        raise CheckpointError('config.json: rope_scaling has no "rope_type"', _HINT)
    settings = {**raw, **parameters}
    partial = positive_number(settings, "partial_rotary_factor", 1.0)
    if partial > 1:
        raise CheckpointError(f'config.json: "partial_rotary_factor" is {partial}, more than 1', _HINT)
    if settings.get(_ORIGINAL_CONTEXT) is not None:
        parameters[_ORIGINAL_CONTEXT] = positive_integer(settings, _ORIGINAL_CONTEXT)
        outside = raw.get(_ORIGINAL_CONTEXT, parameters[_ORIGINAL_CONTEXT])
        if outside not in (None, parameters[_ORIGINAL_CONTEXT]):
            message = (
                f'config.json: "{_ORIGINAL_CONTEXT}" is {outside}, and {parameters[_ORIGINAL_CONTEXT]} in rope_scaling'
            )
            raise CheckpointError(message, _HINT)
    return Rope(
        theta=positive_number(settings, "rope_theta", _DEFAULT_ROPE_THETA),
        type="longrope" if kind == "su" else str(kind or "default"),
        parameters=parameters,
        partial_rotary_factor=partial,
    )


def _key(settings: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    value = settings.get(name)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(f'config.json has no "{name}"', f"the file is incomplete: {_HINT}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CheckpointError(f'config.json: "{name}" is {value!r}', _HINT)
    return value


def _positive(
    settings: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: float | None
) -> int | float:
    value: int | float = _key(settings, name, kind, default)
    if not 0 < value < math.inf:
        raise CheckpointError(f'config.json: "{name}" is {value}', _HINT)
    return value


def _boolean(settings: Mapping[str, Any], name: str, default: bool) -> bool:
    return bool(_key(settings, name, bool, default))
