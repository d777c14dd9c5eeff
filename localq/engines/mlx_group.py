"""Sequences that MLX computes together: one pass gives a token to each of them.

Their keys and values are in one array a layer, aligned at the end: mlx_lm's `BatchKVCache`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mlx.core as mx


def can_be_grouped(model: Any, cache: Sequence[Any]) -> bool:
    """Whether the network takes such caches. Nothing is computed: MLX checks the shapes first."""
    import mlx.core as mx
    from mlx_lm.models.cache import BatchKVCache, KVCache

    if any(type(layer) is not KVCache for layer in cache):
        return False
    try:
        logits = model(mx.array([[0], [0], [0]]), cache=[BatchKVCache([0, 1, 2]) for _ in cache])
    except Exception:  # each network fails differently
        return False
    return bool(logits.shape[:2] == (3, 1))


class Group:
    """A sequence is in here, or in a cache of its own; `caches` of the engine has an empty list in its place then."""

    def __init__(self, caches: list[list[Any]]) -> None:
        self._caches = caches
        self._layers: list[Any] = []
        self.members: list[int] = []
        """Their order is that of the rows."""

    def drop(self) -> None:
        """Forget what is in here."""
        self._layers, self.members = [], []

    def change(self, wanted: Sequence[int]) -> None:
        """Let exactly these sequences be in here; the others get a cache of their own again."""
        import mlx.core as mx
        from mlx_lm.models.cache import BatchKVCache

        staying = [row for row, member in enumerate(self.members) if member in wanted]
        for row, member in enumerate(self.members):
            if member not in wanted:
                self._caches[member] = [layer.extract(row) for layer in self._layers]
                mx.eval([layer.state for layer in self._caches[member]])
        joining = [member for member in wanted if member not in self.members]
        if not staying:
            self.drop()
        elif len(staying) < len(self.members):
            for layer in self._layers:
                layer.filter(mx.array(staying))
        self.members = [self.members[row] for row in staying] + joining
        if joining:
            own = [BatchKVCache.merge(list(layers)) for layers in zip(*map(self._take, joining), strict=True)]
            for layer, added in zip(self._layers, own, strict=False):
                layer.extend(added)
            self._layers = self._layers or own
        mx.eval([layer.state for layer in self._layers])

    def _take(self, member: int) -> list[Any]:
        cache, self._caches[member] = self._caches[member], []
        return cache

    def forward(self, model: Any, tokens: Sequence[int]) -> mx.array:
        """Append a token to each member, in the order of `members`; logits, one row each, not evaluated yet."""
        import mlx.core as mx

        rows: mx.array = model(mx.array(list(tokens), dtype=mx.int32)[:, None], cache=self._layers)[:, 0]
        return rows.astype(mx.float32)

    @property
    def state(self) -> list[Any]:
        """What the next pass needs, to be evaluated: another thread can't."""
        return [layer.state for layer in self._layers]
