"""The sentence on tensors that got another type than the recipe asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localq.store.manifest import Fallback


def describe_fallbacks(fallbacks: Sequence[Fallback]) -> str:
    """`2 tensors with rows that fit no block fall back to other types: 1 from q4_K to q5_0, 1 from q6_K to q8_0`."""
    kinds = Counter((fallback.wanted, fallback.used) for fallback in fallbacks)
    changes = ", ".join(f"{count:,} from {wanted} to {used}" for (wanted, used), count in kinds.items())
    tensors, verb = ("1 tensor", "falls") if len(fallbacks) == 1 else (f"{len(fallbacks):,} tensors", "fall")
    return f"{tensors} with rows that fit no block {verb} back to other types: {changes}"
