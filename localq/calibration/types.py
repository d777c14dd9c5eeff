"""The types that a budget chooses from, and their keys in a calibration.

GGUF types have ggml's names, such as `q4_K`; MLX types are `mlx-4-g64`: bits and weights per group. `plain-q4_K` and
`mlx-plain-4-g64` are the same types made without a calibration.
"""

from __future__ import annotations

FAST_GGUF_TYPES = ("q2_K", "q3_K", "iq4_xs", "iq4_nl", "q4_K", "q5_0", "q5_1", "q5_K", "q6_K", "q8_0")
"""They take about as long as those of an uncalibrated conversion."""

SLOW_GGUF_TYPES = ("iq2_xxs", "iq2_xs", "iq3_xxs", "iq3_s")
"""They take ten times as long to make, and longer to run on a CPU."""

NEED_IMPORTANCE = ("iq2_xxs", "iq2_xs", "iq3_xxs")
"""llama.cpp makes them only for tensors whose columns have an importance."""

GGUF_TYPES = (*FAST_GGUF_TYPES, *SLOW_GGUF_TYPES)
PLAIN_GGUF_TYPES = ("q2_K", "q3_K", "q4_K", "q5_K", "q6_K")
"""Those of the usual formats that a calibration changes."""

MLX_TYPES = tuple((bits, group_size) for bits in (2, 3, 4, 5, 6, 8) for group_size in (32, 64, 128))
"""Bits and group size."""
PLAIN_MLX_TYPES = tuple((bits, 64) for bits in (2, 3, 4, 5, 6, 8))

PLAIN = "plain-"


def mlx_key(bits: int, group_size: int, kind: str = "") -> str:
    """`mlx-4-g64`; `mlx-plain-4-g64` with `kind` PLAIN."""
    return f"mlx-{kind}{bits}-g{group_size}"
