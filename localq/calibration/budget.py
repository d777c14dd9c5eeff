"""Which type each tensor gets, so that the damage of all together is smallest and the bytes stay within a budget.

A tensor's damage is its sensitivity times the weighted squared error of the type; both were measured by
`localq calibrate`. Knows no format: a type is a key, its bytes and its error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import geometric_mean, median
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_UNITS_PER_TENSOR, _LEAST_UNITS, _MOST_UNITS = 150, 1 << 12, 1 << 14
"""What the room above the smallest types is divided into: so fine that less than a hundredth of it is lost."""

_HEDGE = 0.15
_LEAST_SHARE = 1e-4
"""Of the median tensor's damage, which no tensor's is taken to be below: smaller ones are lost in rounding."""


class Measurements(Protocol):
    """What a choice needs of a calibration."""

    @property
    def sensitivity(self) -> Mapping[str, float]:
        """By the tensor's GGUF name: mean KL divergence in nats per unit of weighted squared error."""

    @property
    def errors(self) -> Mapping[str, Mapping[str, float]]:
        """Type key -> GGUF name -> weighted squared error of the whole tensor."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A type that a tensor may get."""

    type_key: str
    nbytes: int
    """Of the whole tensor."""
    damage: float
    """Mean KL divergence in nats that it is predicted to cost; 0 where nothing is quantized."""


def choose(candidates: Mapping[str, Sequence[Candidate]], budget_bytes: int) -> dict[str, Candidate] | None:
    """A candidate for each tensor, with the smallest sum of damages within the budget; None where none fit.

    Dynamic programming over units of bytes, rounded up for each tensor, so that the budget is never exceeded; what
    rounding left is then given to the single changes that gain most. Exact where the room is below `_LEAST_UNITS`
    bytes.
    """
    useful = {name: _without_worse(options) for name, options in candidates.items()}
    room = budget_bytes - sum(options[0].nbytes for options in useful.values())
    if room < 0:
        return None
    units = min(max(_UNITS_PER_TENSOR * len(useful), _LEAST_UNITS), _MOST_UNITS)
    unit = max(1, -(-room // units))
    best = _least_damage(useful, room // unit, unit)
    return _filled(useful, best, budget_bytes)


def predicted_damages(measurements: Measurements) -> dict[str, dict[str, float]]:
    """Type key -> GGUF name -> mean KL divergence in nats that the type costs there: sensitivity x error.

    A sensitivity that is lost in the rounding of the measurement is taken as a small share of the median tensor's, and
    one that was not measured as the median tensor's, both by the damage at the type with the largest error.
    """
    measured, errors = measurements.sensitivity, measurements.errors
    largest: dict[str, float] = {}
    for by_tensor in errors.values():
        for name, error in by_tensor.items():
            largest[name] = max(error, largest.get(name, 0.0))
    damages = {name: measured[name] * error for name, error in largest.items() if name in measured}
    usual = median([damage for damage in damages.values() if damage > 0] or [1.0])
    per_error = {
        name: max(damages.get(name, usual), _LEAST_SHARE * usual) / error if error else 0.0
        for name, error in largest.items()
    }
    return {
        key: {name: error * per_error[name] for name, error in by_tensor.items()} for key, by_tensor in errors.items()
    }


def hedged_damages(measurements: Measurements) -> dict[str, dict[str, float]]:
    """As `predicted_damages`, for the choice: each sensitivity moved a little towards their geometric mean.

    What was measured on some hundred tokens scatters, and coarse types in many tensors cost more together than each
    alone. On two small models this took up to a third off the divergence at 4.5 to 5 bits (benchmarks/README.md).
    """
    damages = predicted_damages(measurements)
    per_error = {
        name: damage / measurements.errors[key][name]
        for key, by_tensor in damages.items()
        for name, damage in by_tensor.items()
        if damage > 0 and measurements.errors[key][name] > 0
    }
    mean = geometric_mean(per_error.values()) if per_error else 1.0
    factors = {name: (mean / measured) ** _HEDGE for name, measured in per_error.items()}
    return {
        key: {name: damage * factors.get(name, 1.0) for name, damage in by_tensor.items()}
        for key, by_tensor in damages.items()
    }


def _without_worse(options: Sequence[Candidate]) -> list[Candidate]:
    """Sorted by bytes; each has less damage than all smaller ones."""
    kept: list[Candidate] = []
    for option in sorted(options, key=lambda option: (option.nbytes, option.damage)):
        if not kept or option.damage < kept[-1].damage:
            kept.append(option)
    return kept


def _least_damage(useful: Mapping[str, list[Candidate]], room: int, unit: int) -> dict[str, Candidate]:
    """`room` is what may be used above the smallest candidates, in units of `unit` bytes."""
    import numpy as np

    least: NDArray[np.float64] = np.zeros(room + 1)  # by the units that may be used
    taken = []
    for options in useful.values():
        steps = [-(-(option.nbytes - options[0].nbytes) // unit) for option in options]
        with_this = np.full((len(options), room + 1), np.inf)
        for number, (option, step) in enumerate(zip(options, steps, strict=True)):
            if step <= room:
                with_this[number, step:] = least[: room + 1 - step] + option.damage
        chosen = with_this.argmin(axis=0)
        least = np.take_along_axis(with_this, chosen[None], axis=0)[0]
        taken.append((chosen.astype(np.uint8), steps))
    best: dict[str, Candidate] = {}
    for (name, options), (choices, steps) in reversed(list(zip(useful.items(), taken, strict=True))):
        number = int(choices[room])
        best[name] = options[number]
        room -= steps[number]
    return best


def _filled(
    useful: Mapping[str, list[Candidate]], best: Mapping[str, Candidate], budget_bytes: int
) -> dict[str, Candidate]:
    """With single changes that fit and gain most, as long as there is one; in the order of `useful`."""
    best = {name: best[name] for name in useful}
    left = budget_bytes - sum(candidate.nbytes for candidate in best.values())
    while True:
        changes = [
            (best[name].damage - option.damage, name, option)
            for name, options in useful.items()
            for option in options
            if option.damage < best[name].damage and option.nbytes - best[name].nbytes <= left
        ]
        if not changes:
            return best
        _, name, option = max(changes, key=lambda change: change[0])
        left -= option.nbytes - best[name].nbytes
        best[name] = option
