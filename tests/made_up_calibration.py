"""A calibration with figures that were not measured, for tests of what is done with them: made in no time."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from localq.calibration.calibration import Calibration, calibration_folder, write_calibration
from localq.calibration.importance import ImportanceMatrix
from localq.calibration.types import (
    GGUF_TYPES,
    MLX_TYPES,
    PLAIN,
    PLAIN_GGUF_TYPES,
    PLAIN_MLX_TYPES,
    SLOW_GGUF_TYPES,
    mlx_key,
)
from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.source import cached_checkpoint
from localq.conversion import ggml
from localq.reference import parse_reference
from localq.store.store import Store, source_of

_BITS = {
    "iq2_xxs": 2.1,
    "iq2_xs": 2.3,
    "q2_K": 2.3,
    "iq3_xxs": 2.9,
    "q3_K": 3.1,
    "iq3_s": 3.3,
    "iq4_xs": 4.1,
    "q4_K": 4.3,
}
_BITS |= {"iq4_nl": 4.1, "q5_0": 5.0, "q5_1": 5.3, "q5_K": 5.3, "q6_K": 6.2, "q8_0": 8.0}


def made_up_errors(checkpoint: Checkpoint) -> dict[str, dict[str, float]]:
    """As measured errors are: a quarter for each bit, and only of types that fit a tensor's rows."""
    errors: dict[str, dict[str, float]] = {}
    for layout in checkpoint.layouts:
        if not layout.is_quantizable:
            continue
        size, columns = math.prod(layout.shape), layout.shape[-1]
        bits = {kind: _BITS[kind] for kind in GGUF_TYPES if columns % ggml.block_weights(ggml.type_number(kind)) == 0}
        bits |= {PLAIN + kind: bits[kind] - 0.2 for kind in PLAIN_GGUF_TYPES if kind in bits}
        for number, group_size in MLX_TYPES:
            if columns % group_size == 0:
                bits[mlx_key(number, group_size)] = number + 8 / group_size
                if (number, group_size) in PLAIN_MLX_TYPES:
                    bits[mlx_key(number, group_size, PLAIN)] = number - 0.2
        for key, value in bits.items():
            errors.setdefault(key, {})[layout.gguf_name] = size * 4.0**-value
    return errors


def write_made_up_calibration(
    reference: str | Path, models_dir: Path, sensitivity: Mapping[str, float] | None = None, *, slow_types: bool = True
) -> Calibration:
    """Sensitivities over two decades, unless given; all columns matter alike."""
    store, parsed = Store(models_dir), parse_reference(reference)
    checkpoint = cached_checkpoint(parsed)
    errors = made_up_errors(checkpoint)
    if not slow_types:
        errors = {key: by_tensor for key, by_tensor in errors.items() if key not in SLOW_GGUF_TYPES}
    layouts = [layout for layout in checkpoint.layouts if layout.is_quantizable]
    generator = random.Random(0)
    chosen = {layout.gguf_name: 10 ** generator.uniform(-6, -4) for layout in layouts}
    shapes = {
        layout.gguf_name: (layout.shape[0] if len(layout.shape) > 2 else 1, layout.shape[-1]) for layout in layouts
    }
    importance = ImportanceMatrix(
        {name: np.ones(shape, np.float32) for name, shape in shapes.items()},
        {name: np.ones(shape[0], np.float32) for name, shape in shapes.items()},
    )
    calibration = Calibration(
        model=str(parsed),
        source=source_of(parsed),
        revision=checkpoint.revision,
        created="2026-01-01T00:00:00+00:00",
        versions={},
        measured_as="gguf-bf16",
        texts=(),
        tokens=0,
        tokens_wanted=0,
        sensitivity_tokens=0,
        seconds=0.0,
        divergence={},
        sensitivity=dict(sensitivity) if sensitivity is not None else chosen,
        errors=errors,
    )
    folder = calibration_folder(store, parsed)
    folder.mkdir(parents=True, exist_ok=True)
    return write_calibration(folder, calibration, importance)
