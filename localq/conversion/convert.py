"""The verb: turn a checkpoint into artifacts, or find those that were made before.

All formats of one call are made in one pass over the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Unpack

from localq.checkpoint.hub import DownloadProgress
from localq.checkpoint.source import cached_checkpoint, resolve_checkpoint
from localq.conversion.plan import ConversionPlan, PlannedForm, Recipes, Request, Source, plan_conversion
from localq.conversion.writing import write_forms
from localq.keywords import named_options
from localq.notebook import Bars, in_notebook
from localq.options import ConvertKeywords, ConvertOptions
from localq.recipes import Recipe
from localq.store.manifest import Artifact
from localq.store.upkeep import remove_leftovers


class ConversionListener:
    """Gets the events of a conversion. This one does nothing with them; the command line shows bars."""

    on_download: DownloadProgress | None = None
    """See `localq.checkpoint.hub`."""

    def on_reused(self, artifact: Artifact) -> None:
        """An artifact of an earlier conversion is taken."""

    def on_outdated(self, artifact: Artifact) -> None:
        """The checkpoint changed since this artifact was made; it will be made again."""

    def on_caveat(self, caveat: str) -> None:
        """A sentence on a difference between a runtime and the model's reference; once, when artifacts were made."""

    def on_progress(self, recipes: Sequence[Recipe], done_bytes: int, total_bytes: int) -> None:
        """Bytes of the checkpoint's weights that are converted, to all formats of this pass."""

    def on_wait(self, recipe: Recipe) -> None:
        """Another process is making the same artifact."""


class NotebookListener(ConversionListener):
    """Shows bars in IPython and Jupyter."""

    def __init__(self) -> None:
        self._bars = Bars()

    def on_download(self, done_bytes: int, total_bytes: int) -> None:
        """A bar for the download."""
        self._bars.update("download", done_bytes, total_bytes)

    def on_progress(self, recipes: Sequence[Recipe], done_bytes: int, total_bytes: int) -> None:
        """A bar for each pass over the weights."""
        self._bars.update(", ".join(recipe.name for recipe in recipes), done_bytes, total_bytes)


def listener_or_default(listener: ConversionListener | None) -> ConversionListener:
    """`listener`, else one that shows bars in IPython and Jupyter, and nothing elsewhere."""
    return listener or (NotebookListener() if in_notebook() else ConversionListener())


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of one recipe."""

    artifact: Artifact
    seconds: float
    """Of the whole pass that made it; 0 where the artifact existed."""
    reused: bool

    @property
    def form(self) -> PlannedForm:
        """What a dry run says of it."""
        return PlannedForm.of(self.artifact, self.reused)


@named_options(ConvertOptions)
def convert(
    source: Source,
    recipes: Recipes = None,
    *,
    models_dir: Path | str | None = None,
    listener: ConversionListener | None = None,
    **options: Unpack[ConvertKeywords],
) -> list[Artifact]:
    """Make the artifacts of a checkpoint that do not exist yet; with `force` all of them.

        localq.convert("toy-llama")
        localq.convert("microsoft/Phi-4-mini-instruct", ["mlx-4bit", "gguf-q8_0"])

    Without `recipes`: MLX 4-bit and GGUF Q4_K_M, as far as this platform and the model's family have them.
    `models_dir` is the folder to write to. `listener` gets the progress; without one, IPython and Jupyter show bars.
    The disk is checked for room for all artifacts before any work starts. Raises errors of the tree in `localq.errors`.
    """
    request = Request(source, recipes, models_dir, **options)
    return [converted.artifact for converted in make_forms(request, listener)]


def make_forms(request: Request, listener: ConversionListener | None = None) -> list[Converted]:
    """As `convert`, and says of each artifact whether it existed and how long it took."""
    listener = listener_or_default(listener)
    plan = plan_conversion(request, lambda model: resolve_checkpoint(model, listener.on_download))
    for artifact in plan.outdated:
        listener.on_outdated(artifact)
    made = {name: Converted(artifact, 0.0, reused=True) for name, artifact in plan.there.items()}
    if plan.plans:
        remove_leftovers(plan.store)
        plan.store.check_room(sum(planned.weight_bytes for planned in plan.plans.values()))
        made |= _make(plan, listener)
        for caveat in plan.caveats():
            listener.on_caveat(caveat)
    forms = [made[recipe.name] for recipe in plan.wanted]
    for form in forms:
        if form.reused:
            listener.on_reused(form.artifact)
    return forms


def dry_run(request: Request) -> list[PlannedForm]:
    """What `convert` would do, without writing and without the network: exact sizes from the plans.

    Raises as `convert` does; ModelNotFoundError for a repository that is not in the Hugging Face cache.
    """
    plan = plan_conversion(request, cached_checkpoint)
    if plan.makes_gguf:
        plan.gguf_metadata()  # refuses a tokenizer that GGUF can't hold
    return [plan.planned(recipe) for recipe in plan.wanted]


def _make(plan: ConversionPlan, listener: ConversionListener) -> dict[str, Converted]:
    """Write and publish what is planned, except what another process made since; by the recipe's name."""
    made: dict[str, Converted] = {}
    with ExitStack() as locks:
        stagings: dict[str, Path] = {}
        for name in sorted(plan.plans):  # the same order in every process: no two wait for each other
            recipe = plan.plans[name].recipe
            on_wait = partial(listener.on_wait, recipe)
            staging = locks.enter_context(plan.store.writing(plan.reference, recipe, on_wait))
            artifact = None if plan.request.force else plan.store.find(plan.reference, recipe)
            if artifact is not None and plan.is_current(artifact):
                made[name] = Converted(artifact, 0.0, reused=True)
            else:
                stagings[name] = staging
        if stagings:
            manifests = write_forms(plan, stagings, listener.on_progress, on_caveat=listener.on_caveat)
            for name, staging in stagings.items():
                artifact = plan.store.publish(staging, manifests[name])
                made[name] = Converted(artifact, manifests[name].seconds, reused=False)
    return made
