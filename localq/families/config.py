"""A checkpoint's `config.json`, read into one shape whichever transformers version wrote it.

transformers 4 writes `rope_theta` and `rope_scaling` (with `type` or `rope_type`) at the top level;
transformers 5 writes `rope_parameters`. Both end up in `Rope`. Knows no weights and no architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localq.errors import CheckpointError

_DEFAULT_ROPE_THETA = 10_000.0  # transformers' default where a config says nothing


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
        return int(self.rope.parameters.get("original_max_position_embeddings", self.max_position_embeddings))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises CheckpointError naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}", "give the folder that holds it") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}", "download the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object", "download the file again")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """As `read_json`, and an empty object where there is no such file."""
    return read_json(path) if path.exists() else {}


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
    head_count = _integer(raw, "num_attention_heads")
    hidden_size = _integer(raw, "hidden_size")
    return ModelConfig(
        architecture=architecture_of(raw),
        model_type=_key(raw, "model_type", str),
        hidden_size=hidden_size,
        intermediate_size=_integer(raw, "intermediate_size"),
        layer_count=_integer(raw, "num_hidden_layers"),
        head_count=head_count,
        kv_head_count=_integer(raw, "num_key_value_heads", head_count),
        head_dim=_integer(raw, "head_dim", hidden_size // head_count),
        vocabulary_size=_integer(raw, "vocab_size"),
        max_position_embeddings=_integer(raw, "max_position_embeddings"),
        norm_epsilon=_number(raw, "rms_norm_eps"),
        rope=_parse_rope(raw),
        # The Llama and Phi classes of transformers don't tie unless the config says so.
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        raw=raw,
    )


def _parse_rope(raw: Mapping[str, Any]) -> Rope:
    scaling = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise CheckpointError(f"config.json: rope_scaling is {scaling!r}, not an object")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    parameters = dict(scaling)
    original = raw.get("original_max_position_embeddings")
    if original is not None:
        parameters.setdefault("original_max_position_embeddings", original)
    partial = scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    theta = scaling.get("rope_theta", raw.get("rope_theta", _DEFAULT_ROPE_THETA))
    return Rope(
        theta=float(theta),
        type="longrope" if kind == "su" else str(kind),
        parameters=parameters,
        partial_rotary_factor=float(partial),
    )


def _key(raw: Mapping[str, Any], name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
    value = raw.get(name)
    if value is None:
        value = default
    if value is None:
        raise CheckpointError(
            f'config.json has no "{name}"',
            "the file is incomplete: take config.json from the model's page again",
        )
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CheckpointError(f'config.json: "{name}" is {value!r}', "take config.json from the model's page again")
    return value


def _integer(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = _key(raw, name, int, default)
    if value <= 0:
        raise CheckpointError(f'config.json: "{name}" is {value}', "take config.json from the model's page again")
    return int(value)


def _number(raw: Mapping[str, Any], name: str) -> float:
    return float(_key(raw, name, (int, float)))
