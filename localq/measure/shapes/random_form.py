"""Forms of a shape with random weights, for as long as they are measured: how fast would that model be, does it fit?

The forms are what a conversion of a checkpoint of that shape gives, tensor by tensor, but for the values: no weights
are ever there in full precision. One piece of each type and row length is quantized, and its bytes are written over
and over, as fast as the disk takes them. Speed and size don't depend on the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.checkpoint.folder import Checkpoint
from localq.context_length import config_limits
from localq.conversion.gguf import GgufFile, Rows
from localq.conversion.gguf_header import GgufMetadata, temporary_folder
from localq.conversion.mlx import MlxFolder
from localq.conversion.plan_gguf import GgufPlan
from localq.conversion.plan_memory import memory_use
from localq.conversion.plan_mlx import MlxPlan, MlxTensor
from localq.conversion.survey import Plan, Recipes, Request, Survey, survey
from localq.conversion.writing import Writers, write_forms
from localq.disk import disk_errors
from localq.errors import EngineError
from localq.measure.forms import Form, form_of
from localq.measure.shapes.random_checkpoint import random_checkpoint, write_files
from localq.measure.shapes.shapes import shape_config
from localq.memory import require_memory
from localq.options import LoadOptions
from localq.recipes import Recipe
from localq.reference import ModelReference
from localq.store.layout import MANIFEST_NAME
from localq.store.manifest import Artifact, Manifest
from localq.store.store import Store
from localq.store.upkeep import remove_leftovers
from localq.tables import format_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Tell = Callable[[str], None]
"""Told a line for people."""


class _RepeatedGgufFile(GgufFile):
    """A GGUF file whose matrices repeat the bytes of one piece."""

    def __init__(self, checkpoint: Checkpoint, plan: GgufPlan, metadata: Future[GgufMetadata], file: Path) -> None:
        super().__init__(checkpoint, plan, metadata, file)
        self._pieces: dict[tuple[str, int, int], NDArray[np.uint8]] = {}

    def encoded(self, rows: Rows) -> NDArray[np.uint8]:
        """Quantized where there was none of this type and size before."""
        if len(rows.tensor.shape) < 2:
            return super().encoded(rows)
        kind = rows.tensor.type_name, rows.tensor.columns, rows.stop - rows.start
        if kind not in self._pieces:
            self._pieces[kind] = super().encoded(rows)
        return self._pieces[kind]


class _RepeatedMlxFolder(MlxFolder):
    """An MLX folder whose matrices repeat the bytes of one piece."""

    def __init__(self, checkpoint: Checkpoint, plan: MlxPlan, folder: Path) -> None:
        super().__init__(checkpoint, plan, folder)
        self._pieces: dict[tuple[object, ...], list[Any]] = {}

    def encoded(self, tensor: MlxTensor, rows: NDArray[Any]) -> list[Any]:
        """Quantized where there was none of this type and size before."""
        if rows.ndim < 2:
            return super().encoded(tensor, rows)
        kind = tensor.dtype, tensor.quantization, rows.shape
        if kind not in self._pieces:
            self._pieces[kind] = super().encoded(tensor, rows)
        return self._pieces[kind]


@contextmanager
def shape_forms(
    shape_name: str,
    recipes: Recipes = None,
    options: LoadOptions | None = None,
    *,
    models_dir: Path | str | None = None,
    others_bytes: int = 0,
    on_step: Tell | None = None,
) -> Iterator[list[Form]]:
    """Forms of a shape on disk, in the order of `recipes`; without them those that `localq convert` makes by default.

    They lie in the models folder, where only this process sees them, and are gone at the end; what a process that was
    killed left there goes like any half-written form. A form of a shape can be had once at a time.

    Forms that don't fit in the free memory beside the ones before them, opened with `options`, are left out, which
    `on_step` is told, as well as what the others take; `others_bytes` of the free memory are for other models.
    Raises OptionError for an unknown shape or a context beyond the model's, EngineError where no form fits in the
    memory, StoreError where they don't fit on the disk, and what a conversion raises.
    """
    tell = on_step or (lambda line: None)
    name, shape = shape_name.lower(), shape_config(shape_name)
    store = Store(models_dir)
    with ExitStack() as stack:
        with temporary_folder() as folder:
            checkpoint = random_checkpoint(name, shape, folder)
            found = survey(Request(ModelReference("built-in", name), recipes), store, lambda reference: checkpoint)
            found = replace(found, plans=_fitting_plans(found, options or LoadOptions(), others_bytes, tell))
            needed_bytes = sum(plan.weight_bytes for plan in found.plans.values())
            remove_leftovers(store)
            store.check_room(needed_bytes)
            folders = {
                recipe.name: stack.enter_context(store.writing(found.reference, recipe, partial(_wait, recipe, tell)))
                for recipe in sorted((plan.recipe for plan in found.plans.values()), key=lambda recipe: recipe.name)
            }
            tell(f"writing {format_bytes(needed_bytes)} of random weights in the shape of {name}")
            write_files(checkpoint)
            writers = Writers(_RepeatedGgufFile, _RepeatedMlxFolder)
            manifests = write_forms(found, folders, lambda recipes, done_bytes, total_bytes: None, writers)
        yield [_form(store, folders[recipe], manifests[recipe]) for recipe in found.plans]


def _wait(recipe: Recipe, tell: Tell) -> None:
    tell(f"another localq measures this shape as {recipe.name}: waiting for it")


def _form(store: Store, folder: Path, manifest: Manifest) -> Form:
    """An artifact that is complete, but never published."""
    with disk_errors(store.folder):
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return form_of(Artifact(folder, manifest))


def _fitting_plans(found: Survey, options: LoadOptions, taken_bytes: int, tell: Tell) -> dict[str, Plan]:
    """Those that can be in memory together, the first ones first. Raises EngineError where there are none."""
    import psutil

    config = found.checkpoint.config
    context_length = config_limits(config.raw).chosen(options.context_length)
    fitting: dict[str, Plan] = {}
    refusals: list[EngineError] = []
    for recipe in found.wanted:
        plan, form_name = found.plans[recipe.name], f"{found.checkpoint.name}:{recipe.name}"
        use = memory_use(plan, config, options)
        try:
            require_memory(form_name, recipe.format, use, context_length, taken_bytes)
        except EngineError as error:
            refusals.append(error)
            continue
        free_bytes = psutil.virtual_memory().available - taken_bytes
        taken_bytes += use.needed_bytes(context_length)
        fitting[recipe.name] = plan
        tell(
            f"{form_name} {format_bytes(plan.weight_bytes)}, needs about "
            f"{format_bytes(use.needed_bytes(context_length))} of memory with a context of {context_length:,} tokens; "
            f"{format_bytes(free_bytes)} are free"
        )
    if not fitting:
        raise EngineError("; ".join(refusal.message for refusal in refusals), refusals[-1].hint)
    for refusal in refusals:
        tell(f"warning: left out: {refusal.message}: {refusal.hint}")
    return fitting
