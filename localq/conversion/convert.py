"""The verb: turn a checkpoint into artifacts, or find those that were made before.

All forms of one call are made in one pass over the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from localq.checkpoint.hub import DownloadProgress
from localq.checkpoint.source import cached_checkpoint, resolve_checkpoint
from localq.conversion.survey import PlannedForm, Recipes, Request, Source, Survey, survey
from localq.conversion.writing import write_forms
from localq.recipes import Recipe
from localq.store.manifest import Artifact
from localq.store.store import Store
from localq.store.upkeep import remove_leftovers


class ConversionListener:
    """Told how a conversion goes. This one ignores it; the command line shows bars."""

    on_download: DownloadProgress | None = None
    """See `localq.checkpoint.hub`."""

    def on_reused(self, artifact: Artifact) -> None:
        """An earlier conversion is taken."""

    def on_outdated(self, artifact: Artifact) -> None:
        """The checkpoint changed since this artifact was made; it will be made again."""

    def on_caveat(self, caveat: str) -> None:
        """A sentence on where a runtime differs from the model's reference; told once, when forms were made."""

    def on_progress(self, recipes: Sequence[Recipe], done_bytes: int, total_bytes: int) -> None:
        """Bytes of the checkpoint's weights that are converted, to all forms that are made in this pass."""

    def on_wait(self, recipe: Recipe) -> None:
        """Another process is making the same artifact."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of one recipe."""

    artifact: Artifact
    seconds: float
    """Of the pass that made it, which forms of one call share; 0 when the artifact was there."""
    reused: bool


def convert(
    source: Source,
    recipes: Recipes = None,
    *,
    models_dir: Path | str | None = None,
    force: bool = False,
    pre_tokenizer: str | None = None,
    listener: ConversionListener | None = None,
) -> list[Artifact]:
    """Make the forms of a checkpoint that are not there yet; all of them anew with `force`.

    Without `recipes`: MLX 4-bit and GGUF Q4_K_M, as far as this platform and the model's family have them.
    `pre_tokenizer` is llama.cpp's name of the rule by which a GGUF form splits text, for a tokenizer whose rule
    localq does not know.
    `source` is a model reference; a repository is pulled when it is not in the Hugging Face cache. The disk
    is checked for room for all forms before any work starts. Raises errors of the tree in `localq.errors`.
    """
    made = make_forms(
        source, recipes, models_dir=models_dir, force=force, pre_tokenizer=pre_tokenizer, listener=listener
    )
    return [converted.artifact for converted in made]


def make_forms(
    source: Source,
    recipes: Recipes = None,
    *,
    models_dir: Path | str | None = None,
    force: bool = False,
    pre_tokenizer: str | None = None,
    listener: ConversionListener | None = None,
) -> list[Converted]:
    """As `convert`, and tells of each form whether it was there and how long it took."""
    listener = listener or ConversionListener()
    request = Request(source, recipes, force, pre_tokenizer)
    found = survey(request, Store(models_dir), lambda model: resolve_checkpoint(model, listener.on_download))
    for artifact in found.outdated:
        listener.on_outdated(artifact)
    made = {name: Converted(artifact, 0.0, reused=True) for name, artifact in found.there.items()}
    if found.plans:
        remove_leftovers(found.store)
        found.store.check_room(sum(plan.weight_bytes for plan in found.plans.values()))
        made |= _Job(found, listener).make()
        for caveat in found.caveats():
            listener.on_caveat(caveat)
    forms = [made[recipe.name] for recipe in found.wanted]
    for form in forms:
        if form.reused:
            listener.on_reused(form.artifact)
    return forms


def plan_conversion(
    source: Source,
    recipes: Recipes = None,
    *,
    models_dir: Path | str | None = None,
    force: bool = False,
    pre_tokenizer: str | None = None,
) -> list[PlannedForm]:
    """What `convert` would do, without writing and without the network: exact sizes from the plans.

    Raises as `convert` does; ModelNotFoundError for a repository that is not in the Hugging Face cache.
    """
    found = survey(Request(source, recipes, force, pre_tokenizer), Store(models_dir), cached_checkpoint)
    if found.makes_gguf:
        found.gguf_metadata()  # a tokenizer that can't be had as GGUF is refused
    return [found.planned(recipe) for recipe in found.wanted]


@dataclass(frozen=True, slots=True)
class _Job:
    """Makes what a survey found missing."""

    survey: Survey
    listener: ConversionListener

    def make(self) -> dict[str, Converted]:
        """Write and publish every form, unless another process did it since the survey; by the recipe's name."""
        made: dict[str, Converted] = {}
        with ExitStack() as locks:
            stagings: dict[str, Path] = {}
            for name in sorted(self.survey.plans):  # the same order in every process: two never wait for each other
                staging = locks.enter_context(self._lock(self.survey.plans[name].recipe))
                made_meanwhile = self._made_meanwhile(self.survey.plans[name].recipe)
                if made_meanwhile:
                    made[name] = Converted(made_meanwhile, 0.0, reused=True)
                else:
                    stagings[name] = staging
            if stagings:
                listener = self.listener
                manifests = write_forms(self.survey, stagings, listener.on_progress, on_caveat=listener.on_caveat)
                for name, staging in stagings.items():
                    artifact = self.survey.store.publish(staging, manifests[name])
                    made[name] = Converted(artifact, manifests[name].seconds, reused=False)
        return made

    def _lock(self, recipe: Recipe) -> AbstractContextManager[Path]:
        return self.survey.store.writing(self.survey.reference, recipe, lambda: self.listener.on_wait(recipe))

    def _made_meanwhile(self, recipe: Recipe) -> Artifact | None:
        if self.survey.request.force:
            return None
        artifact = self.survey.store.find(self.survey.reference, recipe)
        is_current = artifact is not None and self.survey.is_current(artifact)
        return artifact if is_current else None
