"""LongRoPE: two lists of rotary frequency divisors, for contexts up to the original length and for longer ones.

Source: transformers' `_compute_longrope_parameters`. Both runtimes use one list for a whole context; they choose it by
the context's length, when a model is opened.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from localq.errors import CheckpointError, UnsupportedModelError
from localq.families.config import HINT, ModelConfig, positive_integer, positive_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LLAMA_CPP_CONTEXT_STEP = 256


def check_longrope(config: ModelConfig, rotated_width: int, derived_scales: tuple[str, ...]) -> None:
    """Refuse settings that are incomplete, and `derived_scales` that do not follow from the two context lengths.

    The runtimes always derive those scales.
    """
    parameters = config.rope.parameters
    original = positive_integer(parameters, "original_max_position_embeddings")
    if original == 1:
        raise CheckpointError('config.json: "original_max_position_embeddings" is 1', HINT)
    for name in derived_scales:
        derived = config.max_position_embeddings / original if name == "factor" else None
        if parameters.get(name, derived) != derived:
            raise UnsupportedModelError(
                f"LongRoPE with {name} {parameters[name]!r} is not supported",
                "supported: the scale that follows from the original and the longest context",
            )
    for name in ("short_factor", "long_factor"):
        _check_factors(name, parameters.get(name), rotated_width // 2)


def attention_factor(config: ModelConfig) -> float:
    """LongRoPE's scale on queries and keys: sqrt(1 + ln(max / original) / ln(original))."""
    scale = config.max_position_embeddings / config.original_context_length
    if scale <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(scale) / math.log(config.original_context_length))


def longrope_caveats(config: ModelConfig) -> tuple[str, ...]:
    """llama.cpp compares its context with the original one after rounding it up to 256 (src/llama-context.cpp)."""
    original = config.original_context_length
    if config.rope.type != "longrope" or original % _LLAMA_CPP_CONTEXT_STEP == 0:
        return ()
    return (
        f"llama.cpp rounds contexts up to multiples of {_LLAMA_CPP_CONTEXT_STEP} tokens. Where that is more than "
        f"the original {original}, it uses LongRoPE's long factors, unlike MLX.",
    )


def factor_tensors(config: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Both lists as tensors of a GGUF file; none where the model does not use LongRoPE."""
    import numpy as np

    if config.rope.type != "longrope":
        return {}
    return {
        f"rope_factors_{kind}.weight": np.array(config.rope.parameters[f"{kind}_factor"], dtype=np.float32)
        for kind in ("long", "short")
    }


def _check_factors(name: str, factors: object, count: int) -> None:
    if not isinstance(factors, list):
        raise CheckpointError(f'config.json: rope_scaling has no "{name}", which LongRoPE needs', HINT)
    if len(factors) != count:
        raise CheckpointError(
            f"config.json: {name} has {len(factors)} numbers; the head's rotated width needs {count}", HINT
        )
    for number, factor in enumerate(factors):
        positive_number({f"{name}[{number}]": factor}, f"{name}[{number}]")
