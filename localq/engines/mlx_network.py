"""An MLX folder as a network of mlx_lm with its key-value cache, full or quantized. Knows nothing of generation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.errors import EngineError, UnsupportedOptionError
from localq.hardware import mlx_runs_on_gpu
from localq.json_files import read_json, text_config
from localq.options import KvCacheType, LoadOptions

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np
    from numpy.typing import NDArray

CacheMaker = Callable[[], list[Any]]
"""Makes an empty cache: an object of mlx_lm for each layer."""

_BITS = {"q8_0": 8, "q4_0": 4}
_GROUP_SIZES = (64, 32)
"""How many numbers share a scale; the first size that divides the size of a head is taken."""


@dataclass(frozen=True, slots=True)
class Network:
    """A network with its weights in memory."""

    model: Any
    """An `mlx.nn.Module` as mlx_lm makes it."""
    vocabulary_size: int
    make_cache: CacheMaker
    state_settings: Mapping[str, str | bool]
    """See `Engine.state_settings`."""


def load_network(folder: Path, options: LoadOptions, context_length: int) -> Network:
    """Load an MLX folder for contexts of a length, in tokens.

    Raises EngineError when mlx_lm can't load the folder, UnsupportedOptionError for a cache that it can't make.
    """
    import mlx.core as mx
    from mlx_lm.utils import load_model

    wire_memory()
    try:
        config = read_json(folder / "config.json")
        longrope = longrope_for(config, context_length)
        no_null = {"text_config": config.get("text_config") or {}} if "text_config" in config else {}
        model, _ = load_model(folder, lazy=True, model_config={**longrope, **no_null})  # it searches in text_config
        if not mlx_runs_on_gpu():
            # The CPU's half-precision matrix products are 9 (bfloat16) to 35 (float16) times slower.
            model.set_dtype(mx.float32)
        # The state has more than the parameters: also rotary frequencies, which only this thread could compute later.
        # A network is made with random weights first, never computed: each one lengthens the chain of random states.
        mx.eval(model.state, mx.random.state)
        vocabulary_size = text_config(config)["vocab_size"]
    except Exception as error:
        raise EngineError(f"MLX could not load {folder}: {type(error).__name__}: {error}") from error
    settings: dict[str, str | bool] = {
        "engine": "mlx",
        "kv_cache_type": options.kv_cache_type or "full",
        "long_context": not longrope,
    }
    return Network(model, vocabulary_size, cache_maker(model, options.kv_cache_type), settings)


def longrope_for(config: Mapping[str, Any], context_length: int) -> dict[str, Any]:
    """What to change in a config so that mlx_lm rotates by the LongRoPE factors of this context length.

    LongRoPE has short factors for contexts up to `original_max_position_embeddings` and long ones beyond.
    mlx_lm always uses the long ones, so for a short context the short ones are put in their place. llama.cpp
    chooses by context length in the same way. The scale of the embeddings depends on the config's maximum length
    and does not change; only Phi-3.5-MoE has one for each kind of factors (`short_mscale`, `long_mscale`).
    """
    scaling = config.get("rope_scaling")
    if not scaling or "short_factor" not in scaling:
        return {}
    original = config.get("original_max_position_embeddings") or scaling["original_max_position_embeddings"]
    if context_length > original:
        return {}
    short = {"long_factor": scaling["short_factor"]}
    if "short_mscale" in scaling:
        short["long_mscale"] = scaling["short_mscale"]
    return {"rope_scaling": {**scaling, **short}}


@functools.cache
def wire_memory() -> None:
    """Keep MLX's memory on the GPU from being paged out, where Metal allows it.

    The limit is one for the whole process. It is set once and stays: it takes no memory by itself, and an engine that
    reset it would reset it for the others too.
    """
    import mlx.core as mx

    most_bytes = mx.device_info().get("max_recommended_working_set_size")
    if most_bytes is not None:
        mx.set_wired_limit(int(most_bytes))


def cache_maker(model: Any, kv_cache_type: KvCacheType | None) -> CacheMaker:
    """A function that makes a cache for `model`. Raises UnsupportedOptionError when this network can't have it."""
    from mlx_lm.models.cache import KVCache, QuantizedKVCache, make_prompt_cache

    def in_full() -> list[Any]:
        return make_prompt_cache(model)  # type: ignore[no-any-return, unused-ignore]

    if kv_cache_type is None:
        return in_full
    kinds = [type(layer) for layer in in_full()]
    for group_size in _GROUP_SIZES:

        def quantized(group_size: int = group_size) -> list[Any]:
            return [QuantizedKVCache(group_size, _BITS[kv_cache_type]) for _ in kinds]

        if set(kinds) == {KVCache} and _fits(model, quantized()):
            return quantized
    raise UnsupportedOptionError(
        f"mlx_lm can't keep the keys and values of this {model.model_type} in {kv_cache_type}",
        "leave --kv-cache-type out, or use a gguf format",
    )


def _fits(model: Any, cache: list[Any]) -> bool:
    """Whether the network accepts such a cache. Nothing is computed: MLX checks the shapes first."""
    import mlx.core as mx

    try:
        model(mx.array([[0, 0]]), cache=cache)
    except Exception:  # each network fails differently
        return False
    return True


def cache_arrays(cache: list[Any]) -> tuple[NDArray[np.uint8], ...]:
    """The keys and values of all tokens, layer by layer, as bytes. Raises UnsupportedOptionError for other caches."""
    import mlx.core as mx
    import numpy as np
    from mlx.utils import tree_flatten

    _require_plain(cache)
    arrays = [array for layer in cache if layer.offset for _, array in tree_flatten(layer.keys_and_values())]
    return tuple(np.array(array.view(mx.uint8)) for array in arrays)


def fill_cache(model: Any, cache: list[Any], arrays: Sequence[NDArray[np.uint8]], token_count: int) -> None:
    """Put the arrays of another cache with `token_count` tokens into an empty one.

    Raises EngineError when they don't fit the network.
    """
    import mlx.core as mx
    from mlx.utils import tree_map

    _require_plain(cache)
    model(mx.array([[0]]), cache=cache)  # not computed: it only sets shapes and precision
    left = iter(arrays)

    def filled(expected: mx.array) -> mx.array:
        array = next(left, None)
        *outer, _, width = expected.shape
        if array is None or array.shape != (*outer, token_count, width * expected.itemsize):
            raise EngineError(f"MLX could not restore {token_count} computed tokens: they are of another network")
        return mx.array(array).view(expected.dtype)

    for layer in cache:
        layer.keys, layer.values = tree_map(filled, (layer.keys, layer.values))
        layer.offset = token_count
        mx.eval(layer.state)
    if next(left, None) is not None:
        raise EngineError(
            f"MLX could not restore {token_count} computed tokens: they are of a network with more layers"
        )


def _require_plain(cache: list[Any]) -> None:
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    other = {type(layer) for layer in cache} - {KVCache, QuantizedKVCache}
    if other:
        names = ", ".join(sorted(kind.__name__ for kind in other))
        raise UnsupportedOptionError(f"mlx_lm's {names} can't be saved to a file", "leave --prompt-cache out")
