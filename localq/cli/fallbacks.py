"""How it is told that tensors got another type than the recipe asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localq.store.manifest import Fallback


def describe_fallbacks(fallbacks: Sequence[Fallback]) -> str:
    """`3 tensors fit no block and fall back: 2 from q4_K to q5_0, 1 from q6_K to q8_0`; there must be one."""
    kinds = Counter((fallback.wanted, fallback.used) for fallback in fallbacks)
    changes = ", ".join(f"{count:,} from {wanted} to {used}" for (wanted, used), count in kinds.items())
    tensors = (
        "1 tensor fits no block and falls back"
        if len(fallbacks) == 1
        else (f"{len(fallbacks):,} tensors fit no block and fall back")
    )
    return f"{tensors}: {changes}"
