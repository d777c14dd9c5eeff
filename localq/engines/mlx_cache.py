"""The key-value cache of a network of mlx_lm, in full or quantized. Knows no tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from localq.errors import EngineError, UnsupportedOptionError
from localq.options import KvCacheType

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np
    from numpy.typing import NDArray

CacheMaker = Callable[[], list[Any]]
"""Makes an empty cache: an object of mlx_lm for each layer."""

_BITS = {"q8_0": 8, "q4_0": 4}
_GROUP_SIZES = (64, 32)
"""Numbers that share a scale, the first choice first: a head's size must be a multiple."""


def cache_maker(model: Any, kv_cache_type: KvCacheType | None) -> CacheMaker:
    """What makes a cache for `model`. Raises UnsupportedOptionError when this network can't have the one asked for."""
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
        "leave --kv-cache-type out, or take a gguf form",
    )


def _fits(model: Any, cache: list[Any]) -> bool:
    """Whether the network can be set up with such a cache. Nothing is computed: MLX checks shapes before."""
    import mlx.core as mx

    try:
        model(mx.array([[0, 0]]), cache=cache)
    except Exception:  # a network that does not expect such a cache fails in its own way
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
    """Put the arrays of another cache, which held so many tokens, into an empty one.

    Raises EngineError when they don't fit the network.
    """
    import mlx.core as mx
    from mlx.utils import tree_map

    _require_plain(cache)
    model(mx.array([[0]]), cache=cache)  # not computed: it only settles shapes and precision
    left = iter(arrays)

    def filled(expected: mx.array) -> mx.array:
        array = next(left, None)
        *outer, _, width = expected.shape
        if array is None or array.shape != (*outer, token_count, width * expected.itemsize):
            raise EngineError(f"MLX could not take up {token_count} computed tokens: they are of another network")
        return mx.array(array).view(expected.dtype)

    for layer in cache:
        layer.keys, layer.values = tree_map(filled, (layer.keys, layer.values))
        layer.offset = token_count
        mx.eval(layer.state)
    if next(left, None) is not None:
        raise EngineError("MLX could not take up what was computed: there is more of it than the network has layers")


def _require_plain(cache: list[Any]) -> None:
    from mlx_lm.models.cache import KVCache, QuantizedKVCache

    other = {type(layer) for layer in cache} - {KVCache, QuantizedKVCache}
    if other:
        names = ", ".join(sorted(kind.__name__ for kind in other))
        raise UnsupportedOptionError(f"what mlx_lm keeps in a {names} can't be kept in a file", "leave it out")
