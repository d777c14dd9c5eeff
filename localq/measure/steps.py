"""How far a measurement is, for whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """What begins now."""

    part: str
    """The larger part that it lies in: `repetition 2 of 10`, or a form's name."""
    what: str
    """`toy-phi:mlx-4bit, tg128`, or `window 3 of 16`."""
    number: int
    """From 1 on."""
    of: int


OnStep = Callable[[Step], None]
