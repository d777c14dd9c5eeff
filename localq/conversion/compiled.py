"""Shared libraries that were compiled with localq, for the widest vectors that this processor has."""

from __future__ import annotations

import ctypes
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Compiled:
    """A library that was compiled for one vector width."""

    file: Path
    lanes: int
    """Floats in a vector: so many groups of weights are quantized side by side."""
    library: Any

    @property
    def name(self) -> str:
        """Of the processor's instructions that it uses."""
        return {16: "AVX-512", 8: "AVX2"}.get(self.lanes, "SSE2" if platform.machine() == "x86_64" else "NEON")


def widest_library(stem: str) -> Compiled | None:
    """Of `localq/conversion/{stem}_4`, `_8` and `_16`; None where nothing was compiled."""
    found = None
    for lanes in (4, 8, 16):
        spec = find_spec(f"localq.conversion.{stem}_{lanes}")
        if spec is None or spec.origin is None or (found and lanes > found.library.localq_lanes()):
            break
        with suppress(OSError):  # compiled for another processor
            found = Compiled(Path(spec.origin), lanes, ctypes.CDLL(spec.origin))
    return found
