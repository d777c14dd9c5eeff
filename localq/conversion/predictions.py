"""What formats of a calibrated model are predicted to cost, for a choice before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from localq.conversion.budgets import Choices, predicted_damage
from localq.conversion.plan import OpenCheckpoint, Request, plan_conversion, plan_recipe, unquantized_plan
from localq.errors import LocalqError
from localq.recipes import parse_recipe

BUDGETS = (3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
UNIFORM = {
    "mlx": ("mlx-3bit", "mlx-4bit", "mlx-5bit", "mlx-6bit"),
    "gguf": ("gguf-q3_k_m", "gguf-q4_k_m", "gguf-q5_k_m", "gguf-q6_k"),
}
"""The usual formats of each family, which budgets are compared with."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one format would be."""

    recipe: str
    bytes: int
    """Of the weights."""
    bits_per_weight: float
    predicted_kl_divergence: float
    """Mean, in nats."""


def predictions(request: Request, open_checkpoint: OpenCheckpoint) -> list[Prediction]:
    """Budgets and the usual formats, of each family that the request has a format of, by size.

    Empty for a model that is not calibrated, and where the checkpoint is not there any more.
    """
    families = dict.fromkeys(recipe.format for recipe in request.parse()[1])
    whole = [f"{form}-bf16" for form in families]
    try:
        plan = plan_conversion(Request(request.source, whole, request.models_dir, force=True), open_checkpoint)
    except LocalqError:  # a repository's artifacts may outlive its checkpoint
        return []
    checkpoint, calibration = plan.checkpoint, plan.calibration
    if calibration is None:
        return []

    def found(form: str) -> Iterator[Prediction]:
        unquantized = unquantized_plan(checkpoint, form)
        choices = Choices.of(unquantized, checkpoint.parameters, calibration)
        chosen = {bits: choices.chosen(bits) for bits in BUDGETS}
        plans = {f"{form}-{bits:g}bpw": choices.plan(types) for bits, types in chosen.items() if types}
        for name in UNIFORM[form]:
            try:
                plans[name] = plan_recipe(checkpoint, parse_recipe(name))
            except LocalqError:  # a format that this model can't have is nothing to compare with
                continue
        for name, planned in plans.items():
            damage = predicted_damage(planned, calibration)
            if damage is not None:
                bits = 8 * planned.weight_bytes / checkpoint.parameters
                yield Prediction(name, planned.weight_bytes, bits, damage)

    return [one for form in families for one in sorted(found(form), key=lambda one: one.bytes)]
