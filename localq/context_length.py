"""The longest context of a model, and its default: from config.json, or from the header of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from localq.errors import CheckpointError, OptionError
from localq.families.config import parse_config
from localq.families.table import family_of
from localq.gguf_file import GgufHeader
from localq.options import DEFAULT_CONTEXT_LENGTH_TOKENS

_KEYS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "n_positions", "seq_length")
"""Names for the longest context in configurations of models that localq does not convert."""


@dataclass(frozen=True, slots=True)
class ContextLimits:
    """In tokens."""

    default: int
    most: int | None
    """None where the model does not state it."""

    def chosen(self, wanted: int | None) -> int:
        """The context to open: `wanted`, or the default. Raises OptionError where `wanted` is more than the most."""
        if wanted is not None and self.most is not None and wanted > self.most:
            raise OptionError(
                f"a context of {wanted} tokens is more than the model's {self.most}",
                f"give -c/--context-length {self.most} or less",
            )
        return wanted or self.default


def config_limits(config: Mapping[str, Any]) -> ContextLimits:
    """Of a folder; `config` is its config.json as `read_config` gives it."""
    try:
        family = family_of(config)
    except CheckpointError:  # of a model that localq does not convert
        found = (config[key] for key in _KEYS if type(config.get(key)) is int and config[key] > 0)
        return _limits(next(found, None))
    parsed = parse_config(config)
    return ContextLimits(family.default_context_length(parsed), parsed.max_position_embeddings)


def gguf_limits(header: GgufHeader) -> ContextLimits:
    """Of a GGUF file; by default at most the context it was trained with before it was extended."""
    return _limits(header.integer("context_length"), header.integer("rope.scaling.original_context_length"))


def _limits(most: int | None, original: int | None = None) -> ContextLimits:
    return ContextLimits(min(filter(None, (original, most, DEFAULT_CONTEXT_LENGTH_TOKENS))), most)
