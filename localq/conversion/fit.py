"""The largest format under a limit: a file size, or the memory that is free beside a context."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace

from localq.calibration.calibration import require_calibration
from localq.conversion.budgets import Choices
from localq.conversion.importance import of_calibration
from localq.conversion.mlx import safetensors_header
from localq.conversion.plan import (
    ConversionPlan,
    OpenCheckpoint,
    Plan,
    Request,
    memory_use,
    plan_conversion,
    unquantized_plan,
)
from localq.conversion.plan_gguf import GgufMetadata, GgufPlan
from localq.errors import ConversionError, OptionError
from localq.memory import computes_in_other_memory
from localq.recipes import Recipe, parse_recipe
from localq.tables import format_bytes, parse_bytes

_FAMILIES = ("mlx", "gguf")
_MOST_BITS = 16
_MEMORY = re.compile(r"memory(?:=(\d+))?")


@dataclass(frozen=True, slots=True)
class Limit:
    """What a format must fit."""

    file_bytes: int | None = None
    """Of the `.gguf` file, or of an MLX folder's weight files; None where memory is the limit."""
    context_tokens: int | None = None
    """That are in memory beside the weights; None for the model's default."""

    @classmethod
    def parse(cls, text: str) -> Limit:
        """`2.2GB`, `800MiB`, `memory` or `memory=8192`. Raises OptionError."""
        if (size := parse_bytes(text)) is not None:
            return cls(size)
        if found := _MEMORY.fullmatch(text):
            return cls(None, int(found[1]) if found[1] else None)
        raise OptionError(
            f"--fit is {text!r}; expected a size or memory", "for example 2.2GB, 800MB, memory or memory=8192"
        )


def fitting_recipes(request: Request, limit: Limit, open_checkpoint: OpenCheckpoint) -> list[Recipe]:
    """For each family of formats the one with most bits per weight that fits: a budget, or the unquantized model.

    `request` names families, `mlx` or `gguf`, or None for all that are possible. Raises ConversionError where even the
    smallest does not fit, CalibrationError for a model that is not calibrated.
    """
    others = [name for name in request.recipes or () if name not in _FAMILIES]
    if others:
        raise OptionError(f"--fit chooses the format itself; --to is {others[0]}", "give --to mlx or --to gguf")
    plan = plan_conversion(replace(request, force=True), open_checkpoint)
    return [_fitting(plan, form, limit) for form in dict.fromkeys(recipe.format for recipe in plan.wanted)]


def _fitting(plan: ConversionPlan, form: str, limit: Limit) -> Recipe:
    calibration = require_calibration(plan.store, plan.reference, plan.checkpoint.revision)
    unquantized = replace(unquantized_plan(plan.checkpoint, form), importance=of_calibration(calibration))
    choices = Choices.of(unquantized, plan.checkpoint.parameters, calibration)
    size, most_bytes = _measured(plan, form, limit)
    if size(unquantized) <= most_bytes:
        return parse_recipe(f"{form}-{_main_dtype(unquantized)}")
    least, most = (round(bound * 100) for bound in choices.range_bits)
    hundredths = range(least + 1, min(most, 100 * _MOST_BITS) + 1)

    def budgeted_size(number: int) -> int:
        chosen = choices.chosen(number / 100)
        assert chosen is not None, "the range starts where the smallest types fit"
        return size(choices.plan(chosen))

    place = bisect_right(hundredths, most_bytes, key=budgeted_size)
    if place == 0:
        smallest = budgeted_size(hundredths[0])
        raise ConversionError(
            f"{plan.checkpoint.name} does not fit in {format_bytes(most_bytes)} as {form.upper()}: "
            f"{format_bytes(smallest)} to {format_bytes(size(unquantized))} are possible",
            f"give --fit {-(-smallest // 10**6)}MB or more"
            if limit.file_bytes
            else "close other programs, or take a smaller context with --fit memory=TOKENS",
        )
    return parse_recipe(f"{form}-{hundredths[place - 1] / 100:g}bpw")


def _measured(plan: ConversionPlan, form: str, limit: Limit) -> tuple[Callable[[Plan], int], int]:
    """How to measure a plan, and what it may measure at most."""
    import psutil

    if limit.file_bytes is not None:
        metadata = plan.gguf_metadata() if form == "gguf" else None
        return lambda planned: file_bytes(planned, metadata), limit.file_bytes
    config = plan.checkpoint.config
    tokens = limit.context_tokens or plan.checkpoint.family.default_context_length(config)
    if tokens > config.max_position_embeddings:
        raise OptionError(
            f"--fit memory={tokens}: the model has a context of {config.max_position_embeddings:,} tokens"
        )
    if computes_in_other_memory(form):
        raise OptionError(
            f"--fit memory does not know the memory of the graphics card that computes {form.upper()}",
            "give its size, less what the context takes: --fit 6GB",
        )
    return lambda planned: memory_use(planned, config).needed_bytes(tokens), psutil.virtual_memory().available


def file_bytes(planned: Plan, metadata: GgufMetadata | None) -> int:
    """Of the `.gguf` file with this `metadata`, or of the MLX folder's weight files, exactly."""
    if isinstance(planned, GgufPlan):
        assert metadata is not None, "it is part of the file"
        return len(planned.header(metadata)) + planned.weight_bytes
    return planned.weight_bytes + sum(len(safetensors_header(shard)) for shard in planned.shards())


def _main_dtype(plan: Plan) -> str:
    """`bf16`, `f16` or `f32`: the precision of the largest tensor."""

    if isinstance(plan, GgufPlan):
        return max(plan.tensors, key=lambda tensor: tensor.nbytes).type_name
    return max(plan.tensors, key=lambda tensor: tensor.nbytes).dtype.lower()
