"""A checkpoint's `config.json`, read into one shape whichever transformers version wrote it.

transformers 4 writes `rope_theta` and `rope_scaling` (with `type` or `rope_type`) at the top level;
transformers 5 writes `rope_parameters`. Both become `Rope`. Knows no weights, and of the architectures only
their names for the same settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localq.errors import CheckpointError

HINT = "take config.json from the model's page again"

_FLOAT16_BYTES = 2
_ORIGINAL_CONTEXT = "original_max_position_embeddings"

_NAMES: dict[str, dict[str, str]] = {
    "phi": {"rms_norm_eps": "layer_norm_eps"},
    "phi3small": {
        "rms_norm_eps": "layer_norm_epsilon",
        "intermediate_size": "ff_intermediate_size",
        "rope_theta": "rope_embedding_base",
    },
}
"""Model type -> its own names for keys that the other types share."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "phi": {"partial_rotary_factor": 0.5},
    "phimoe": {"rope_theta": 1_000_000.0},
    "phi3small": {"tie_word_embeddings": True},
}
"""Model type -> the values of its class in transformers for keys that a config lacks, before `_COMMON_DEFAULTS`."""

_COMMON_DEFAULTS: dict[str, Any] = {
    "partial_rotary_factor": 1.0,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "phi3small": "Phi3SmallForCausalLM",
    "phimoe": "PhimoeForCausalLM",
}
"""Model type -> the class that generates text, as transformers' AutoModelForCausalLM chooses it."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding."""

    theta: float
    type: str
    """`default`, `linear`, `dynamic`, `yarn`, `llama3` or `longrope`, as transformers calls them."""
    parameters: Mapping[str, Any]
    """The other scaling settings, as the checkpoint has them."""
    partial_rotary_factor: float = 1.0
    """Share of each head's width that is rotated."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The settings of a checkpoint that every family needs."""

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
        """Context in tokens of the model's first training: shorter than the maximum for LongRoPE models."""
        return int(self.rope.parameters.get(_ORIGINAL_CONTEXT, self.max_position_embeddings))

    @property
    def rotated_width(self) -> int:
        """Dimensions of each head that are rotated."""
        return int(self.head_dim * self.rope.partial_rotary_factor)

    @property
    def kv_cache_bytes_per_token(self) -> int:
        """Memory for each token of a context, with keys and values in half precision.

        2 (key and value) x layers x key-value heads x width of a head x 2 bytes.
        """
        return 2 * self.layer_count * self.kv_head_count * self.head_dim * _FLOAT16_BYTES


def architecture_of(raw: Mapping[str, Any]) -> str:
    """The class name in `architectures`; without it the model type's class that generates text.

    Raises CheckpointError where both are missing.
    """
    names = raw.get("architectures")
    if names is None and (name := _CLASSES.get(str(raw.get("model_type")))):
        return name
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(
            'config.json has no "architectures"',
            "it must name the model's class, such as LlamaForCausalLM",
        )
    return names[0]


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Read a config; raises CheckpointError that names the missing or impossible key."""
    model_type: str = _key(raw, "model_type", str)
    names = _NAMES.get(model_type, {})
    settings = {**_COMMON_DEFAULTS, **_DEFAULTS.get(model_type, {}), **_without_nulls(raw)}
    head_count = positive_integer(settings, "num_attention_heads")
    hidden_size = positive_integer(settings, "hidden_size")
    config = ModelConfig(
        architecture=architecture_of(raw),
        model_type=model_type,
        hidden_size=hidden_size,
        intermediate_size=positive_integer(settings, names.get("intermediate_size", "intermediate_size")),
        layer_count=positive_integer(settings, "num_hidden_layers"),
        head_count=head_count,
        kv_head_count=positive_integer(settings, "num_key_value_heads", head_count),
        head_dim=positive_integer(settings, "head_dim", hidden_size // head_count),
        vocabulary_size=positive_integer(settings, "vocab_size"),
        max_position_embeddings=positive_integer(settings, "max_position_embeddings"),
        norm_epsilon=positive_number(settings, names.get("rms_norm_eps", "rms_norm_eps")),
        rope=_parse_rope(settings, names.get("rope_theta", "rope_theta")),
        tied_embeddings=_key(settings, "tie_word_embeddings", bool),
        raw=raw,
    )
    if head_count % config.kv_head_count:
        message = (
            f'config.json: "num_key_value_heads" is {config.kv_head_count}, which does not divide {head_count} heads'
        )
        raise CheckpointError(message, HINT)
    if config.head_dim % 2:
        raise CheckpointError(
            f'config.json: "head_dim" is {config.head_dim}; rotary embedding needs an even number', HINT
        )
    if config.rotated_width % 2 or not config.rotated_width:
        message = (
            f"config.json: each head rotates {config.rotated_width} dimensions; rotary embedding needs an even number"
        )
        raise CheckpointError(message, HINT)
    return config


def positive_integer(settings: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A whole number above 0 of `config.json`. Raises CheckpointError that names the key."""
    return int(_positive(settings, name, int, default))


def positive_number(settings: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """As `positive_integer`, for a finite number that may have a fraction."""
    return float(_positive(settings, name, (int, float), default))


def _without_nulls(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A key that is null means the same as a missing one."""
    return {key: value for key, value in settings.items() if value is not None}


def _parse_rope(settings: Mapping[str, Any], theta_name: str) -> Rope:
    scaling = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if not isinstance(scaling, Mapping):
        raise CheckpointError(f"config.json: rope_scaling is {scaling!r}, not an object", HINT)
    parameters = _without_nulls(scaling)
    kind = parameters.get("rope_type") or parameters.get("type")
    if kind is None and parameters.keys() - {"rope_theta", "partial_rotary_factor", _ORIGINAL_CONTEXT}:
        raise CheckpointError('config.json: rope_scaling has no "rope_type"', HINT)
    outside = settings.get(_ORIGINAL_CONTEXT)
    if outside is not None:
        positive_integer(settings, _ORIGINAL_CONTEXT)
        if parameters.setdefault(_ORIGINAL_CONTEXT, outside) != outside:
            inside = parameters[_ORIGINAL_CONTEXT]
            message = f'config.json: "{_ORIGINAL_CONTEXT}" is {outside}, and {inside} in rope_scaling'
            raise CheckpointError(message, HINT)
    if _ORIGINAL_CONTEXT in parameters:
        positive_integer(parameters, _ORIGINAL_CONTEXT)
    both = {**settings, **parameters}
    partial = positive_number(both, "partial_rotary_factor")
    if partial > 1:
        raise CheckpointError(f'config.json: "partial_rotary_factor" is {partial}, more than 1', HINT)
    return Rope(
        theta=positive_number(both, theta_name),
        type="longrope" if kind == "su" else str(kind or "default"),
        parameters=parameters,
        partial_rotary_factor=partial,
    )


def _key(settings: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    value = settings.get(name)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(f'config.json has no "{name}"', f"the file is incomplete: {HINT}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CheckpointError(f'config.json: "{name}" is {value!r}', HINT)
    return value


def _positive(
    settings: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: float | None
) -> int | float:
    value: int | float = _key(settings, name, kind, default)
    if not 0 < value < math.inf:
        raise CheckpointError(f'config.json: "{name}" is {value}', HINT)
    return value
