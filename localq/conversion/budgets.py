"""Plans under a budget: the calibration says what each type costs in each tensor, and so which one it gets.

Also predicts the damage of any plan, before a byte is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from localq.calibration.budget import Candidate, Measurements, choose, hedged_damages, predicted_damages
from localq.calibration.types import GGUF_TYPES, MLX_TYPES, PLAIN, PLAIN_GGUF_TYPES, SLOW_GGUF_TYPES, mlx_key
from localq.conversion.plan_gguf import GgufPlan, GgufTensor, padded
from localq.conversion.plan_mlx import MlxPlan, MlxTensor
from localq.errors import ConversionError
from localq.recipes import MlxQuantization
from localq.store.manifest import Fallback

_MLX_WAYS = {mlx_key(bits, group_size): MlxQuantization(bits, group_size) for bits, group_size in MLX_TYPES}

_SLOW_PAYS = 0.7
"""Types that take long are used where the damage without them is above the damage with them divided by this."""

_TIME_FACTORS = {"iq4_xs": 1.2, "iq4_nl": 1.2}
"""By which a type's damage is multiplied in the choice: these take 1.7 times as long to make as q4_K. So a 1.2B model
is made in 5% less time, for 1 to 2% more damage."""

Plan = GgufPlan | MlxPlan
_Damages = Mapping[str, Mapping[str, float]]
"""Type key -> GGUF name -> mean KL divergence in nats."""


@dataclass(frozen=True)
class Choices:
    """The types that each tensor of a checkpoint may get in one format, with their bytes and damages."""

    unquantized: Plan
    parameters: int
    candidates: Mapping[str, Sequence[Candidate]]
    """By GGUF name, of the tensors that are quantized in this format, as they are in the checkpoint among them."""

    @classmethod
    def of(cls, unquantized: Plan, parameters: int, measurements: Measurements) -> Choices:
        """From a plan in which nothing is quantized."""
        damages = hedged_damages(measurements)
        measured = {name for by_tensor in damages.values() for name in by_tensor}
        candidates = {}
        for tensor in unquantized.tensors:
            name = _gguf_name(tensor)
            if name in measured:
                candidates[name] = [Candidate("", _stored_bytes(tensor), 0.0), *_quantized(tensor, damages)]
        return cls(unquantized, parameters, candidates)

    @property
    def range_bits(self) -> tuple[float, float]:
        """The least and the most bits per weight."""
        sizes = [[option.nbytes for option in options] for options in self.candidates.values()]
        bounds = self._fixed_bytes + sum(map(min, sizes)), self._fixed_bytes + sum(map(max, sizes))
        return 8 * bounds[0] / self.parameters, 8 * bounds[1] / self.parameters

    def chosen(self, bits: float) -> dict[str, Candidate] | None:
        """The best choice of at most so many bits per weight; None where even the smallest types take more."""
        room = int(bits * self.parameters / 8 + 1e-6) - self._fixed_bytes
        fast = {
            name: [option for option in options if option.type_key not in SLOW_GGUF_TYPES]
            for name, options in self.candidates.items()
        }
        quick, best = choose(fast, room), choose(self.candidates, room)
        if quick is None or best is None:
            return best
        return quick if _SLOW_PAYS * _damage(quick) <= _damage(best) else best

    def plan(self, chosen: Mapping[str, Candidate]) -> Plan:
        """With the chosen types. A tensor that no type fits stays as it is, and is listed."""
        plan, fallbacks = self.unquantized, []
        for tensor in plan.tensors:
            if tensor.layout and tensor.layout.is_quantizable and len(self.candidates.get(_gguf_name(tensor), ())) < 2:
                kept = tensor.type_name if isinstance(tensor, GgufTensor) else tensor.dtype.lower()
                fallbacks.append(Fallback(tensor.name, "fewer bits", kept))
        if isinstance(plan, GgufPlan):
            types = {name: candidate.type_key for name, candidate in chosen.items() if candidate.type_key}
            gguf = tuple(replace(tensor, type_name=types.get(tensor.name, tensor.type_name)) for tensor in plan.tensors)
            return replace(plan, tensors=gguf, fallbacks=tuple(fallbacks))
        ways = {name: _MLX_WAYS.get(candidate.type_key) for name, candidate in chosen.items()}
        mlx = tuple(replace(tensor, quantization=ways.get(_gguf_name(tensor))) for tensor in plan.tensors)
        return replace(plan, tensors=mlx, fallbacks=tuple(fallbacks))

    @property
    def _fixed_bytes(self) -> int:
        others = [tensor for tensor in self.unquantized.tensors if _gguf_name(tensor) not in self.candidates]
        return sum(_stored_bytes(tensor) for tensor in others)


def budgeted(unquantized: Plan, parameters: int, measurements: Measurements) -> Plan:
    """The plan of a recipe with a budget, from one in which nothing is quantized; never above the budget.

    Raises ConversionError where the smallest types take more.
    """
    choices = Choices.of(unquantized, parameters, measurements)
    bits = unquantized.recipe.budget
    assert bits is not None, "it is asked for where there is a budget"
    chosen = choices.chosen(bits)
    if chosen is None:
        least, most = choices.range_bits
        least = -(-least * 100 // 1) / 100  # rounded up, so that it is possible
        raise ConversionError(
            f"{unquantized.recipe.name} is too small: {unquantized.recipe.format.upper()} takes {least:.2f} to "
            f"{most:.2f} bits per weight of this model",
            f"give --to {unquantized.recipe.format}-{least:g}bpw or more",
        )
    return choices.plan(chosen)


def predicted_damage(plan: Plan, measurements: Measurements) -> float | None:
    """Mean KL divergence in nats that the plan is predicted to cost: the sum over its tensors.

    None where it has a type that was not measured.
    """
    damages = predicted_damages(measurements)
    measured = {name for by_tensor in damages.values() for name in by_tensor}
    total = 0.0
    for tensor in plan.tensors:
        key = _type_key(tensor, plan.recipe.calibrated)
        if key and _gguf_name(tensor) in measured:
            damage = damages.get(key, {}).get(_gguf_name(tensor))
            if damage is None:
                return None
            total += damage
    return total


def _damage(chosen: Mapping[str, Candidate]) -> float:
    return sum(candidate.damage for candidate in chosen.values())


def _gguf_name(tensor: GgufTensor | MlxTensor) -> str:
    return tensor.name if isinstance(tensor, GgufTensor) else tensor.layout.gguf_name


def _stored_bytes(tensor: GgufTensor | MlxTensor) -> int:
    return padded(tensor.nbytes) if isinstance(tensor, GgufTensor) else tensor.nbytes


def _quantized(tensor: GgufTensor | MlxTensor, damages: _Damages) -> list[Candidate]:
    """The types that were measured for the tensor."""
    name = _gguf_name(tensor)
    found = []
    for key, by_tensor in damages.items():
        if name not in by_tensor:
            continue
        if isinstance(tensor, MlxTensor) and key in _MLX_WAYS:
            nbytes = _stored_bytes(replace(tensor, quantization=_MLX_WAYS[key]))
        elif isinstance(tensor, GgufTensor) and key in GGUF_TYPES:
            nbytes = _stored_bytes(replace(tensor, type_name=key))
        else:
            continue
        found.append(Candidate(key, nbytes, by_tensor[name] * _TIME_FACTORS.get(key, 1.0)))
    return found


def _type_key(tensor: GgufTensor | MlxTensor, calibrated: bool) -> str:
    """Empty for a tensor that is not quantized."""
    if isinstance(tensor, GgufTensor):
        is_plain = tensor.type_name in PLAIN_GGUF_TYPES and not calibrated
        return "" if tensor.type_name in ("f32", "f16", "bf16") else (PLAIN if is_plain else "") + tensor.type_name
    way = tensor.quantization
    if way is None:
        return ""
    return mlx_key(way.bits, way.group_size, "" if calibrated else PLAIN) if way.mode == "affine" else way.mode
