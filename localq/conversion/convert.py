"""The verb: turn a checkpoint into artifacts, or find those that were made before."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.hub import DownloadProgress
from localq.checkpoint.source import cached_checkpoint, resolve_checkpoint
from localq.conversion.gguf import write_gguf
from localq.conversion.mlx import write_mlx
from localq.conversion.output import WrittenFile, hashed_copy
from localq.conversion.pieces import worker_pool
from localq.conversion.plan import GgufPlan, Plan, make_plan
from localq.engines.availability import default_recipe_names, require_backend
from localq.errors import ModelNotFoundError, ModelReferenceError
from localq.recipes import MlxRecipe, Recipe, parse_recipe
from localq.reference import ModelReference, is_local, parse_reference
from localq.store.manifest import Artifact, FileRecord, Manifest
from localq.store.store import Store, shown_name, source_of
from localq.version import library_versions

_LIBRARIES = ("gguf", "llama-cpp-python", "mlx", "mlx-lm", "numpy", "tokenizers")


class ConversionListener:
    """Told how a conversion goes. This one ignores it; the command line shows bars."""

    on_download: DownloadProgress | None = None
    """See `localq.checkpoint.hub`."""

    def on_reused(self, artifact: Artifact) -> None:
        """An earlier conversion is taken."""

    def on_outdated(self, artifact: Artifact) -> None:
        """The checkpoint changed since this artifact was made; it will be made again."""

    def on_progress(self, recipe: Recipe, done_bytes: int, total_bytes: int) -> None:
        """Bytes of the checkpoint's weights that are converted."""

    def on_wait(self, recipe: Recipe) -> None:
        """Another process is making the same artifact."""


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of one recipe."""

    artifact: Artifact
    seconds: float
    """Of this call; 0 when the artifact was there."""
    reused: bool


@dataclass(frozen=True, slots=True)
class PlannedForm:
    """What a conversion would write, or finds (`--dry-run`)."""

    model: str
    recipe: Recipe
    path: Path
    """Where it lies, or would: the MLX folder or the `.gguf` file."""
    weight_bytes: int
    """Tensor data alone."""
    parameters: int
    reused: bool
    """Whether it is there already."""

    @property
    def bits_per_weight(self) -> float:
        """8 x weight bytes / parameters."""
        return 8 * self.weight_bytes / self.parameters


def convert(
    source: str | os.PathLike[str] | ModelReference,
    recipes: str | Sequence[str | Recipe] | None = None,
    *,
    models_dir: Path | str | None = None,
    force: bool = False,
    listener: ConversionListener | None = None,
) -> list[Artifact]:
    """Make the forms of a checkpoint that are not there yet; all of them anew with `force`.

    Without `recipes`: MLX 4-bit and GGUF Q4_K_M, as far as this platform runs them.
    `source` is a model reference; a repository is pulled when it is not in the Hugging Face cache. The disk
    is checked for room for all forms before any work starts. Raises errors of the tree in `localq.errors`.
    """
    made = make_forms(source, recipes, models_dir=models_dir, force=force, listener=listener)
    return [converted.artifact for converted in made]


def make_forms(
    source: str | os.PathLike[str] | ModelReference,
    recipes: str | Sequence[str | Recipe] | None = None,
    *,
    models_dir: Path | str | None = None,
    force: bool = False,
    listener: ConversionListener | None = None,
) -> list[Converted]:
    """As `convert`, and tells of each form whether it was there and how long it took."""
    listener = listener or ConversionListener()
    survey = _survey(
        source, recipes, Store(models_dir), force, lambda model: resolve_checkpoint(model, listener.on_download)
    )
    for artifact in survey.outdated:
        listener.on_outdated(artifact)
    if survey.plans:
        survey.store.check_room(sum(plan.weight_bytes for plan in survey.plans.values()))
    job = _Job(survey, listener, force)
    return [
        _reused(survey.there[recipe.name], listener) if recipe.name in survey.there else job.make(recipe)
        for recipe in survey.wanted
    ]


def plan_conversion(
    source: str | os.PathLike[str] | ModelReference,
    recipes: str | Sequence[str | Recipe] | None = None,
    *,
    models_dir: Path | str | None = None,
    force: bool = False,
) -> list[PlannedForm]:
    """What `convert` would do, without writing and without the network: exact sizes from the plans.

    Raises as `convert` does; ModelNotFoundError for a repository that is not in the Hugging Face cache.
    """
    survey = _survey(source, recipes, Store(models_dir), force, cached_checkpoint)
    return [survey.planned(recipe) for recipe in survey.wanted]


@dataclass(frozen=True, slots=True)
class _Survey:
    """Which of the forms that were asked for are there, and what the others are to be made from."""

    store: Store
    reference: ModelReference
    wanted: list[Recipe]
    there: dict[str, Artifact]
    """By the recipe's name, like `plans`: each recipe is in one of the two."""
    opened: Checkpoint | None = None
    """None where all is there."""
    outdated: tuple[Artifact, ...] = ()
    plans: dict[str, Plan] = field(default_factory=dict)

    @property
    def checkpoint(self) -> Checkpoint:
        assert self.opened is not None, "whoever made a plan has opened it"
        return self.opened

    def planned(self, recipe: Recipe) -> PlannedForm:
        """What will become of one recipe."""
        if recipe.name in self.there:
            artifact = self.there[recipe.name]
            manifest = artifact.manifest
            sizes = manifest.weight_bytes, manifest.parameters
            return PlannedForm(manifest.model, recipe, artifact.path, *sizes, reused=True)
        folder = self.store.place(self.reference, recipe)
        sizes = self.plans[recipe.name].weight_bytes, self.checkpoint.parameters
        path = folder / _main_file(self.checkpoint, recipe)
        return PlannedForm(shown_name(folder), recipe, path, *sizes, reused=False)


def _survey(
    source: str | os.PathLike[str] | ModelReference,
    recipes: str | Sequence[str | Recipe] | None,
    store: Store,
    force: bool,
    open_checkpoint: Callable[[ModelReference], Checkpoint],
) -> _Survey:
    reference, wanted = _parse(source, recipes)
    for recipe in wanted:
        require_backend(recipe.format)
    found = {} if force else {r.name: a for r in wanted if (a := store.find(reference, r)) is not None}
    if reference.kind == "repo" and len(found) == len(wanted):
        # A repository's artifacts stay valid as they are: no need of its checkpoint, which may be gone.
        return _Survey(store, reference, wanted, found)
    reference = _with_its_folder(reference, store)
    checkpoint = open_checkpoint(reference)
    there = {name: artifact for name, artifact in found.items() if artifact.manifest.revision == checkpoint.revision}
    outdated = tuple(artifact for name, artifact in found.items() if name not in there)
    plans = {recipe.name: make_plan(checkpoint, recipe) for recipe in wanted if recipe.name not in there}
    return _Survey(store, reference, wanted, there, checkpoint, outdated, plans)


def _with_its_folder(reference: ModelReference, store: Store) -> ModelReference:
    """The checkpoint folder behind a name such as `local/model`; any other reference as it is."""
    forms = store.forms(reference) if is_local(reference.name) else []
    if reference.kind != "repo" or not forms:
        return reference
    folder = Path(forms[0].manifest.source)
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"{folder} is gone: the checkpoint folder that {reference} was made from",
            "give the path that it has now; the forms that were made of it are there still",
        )
    return parse_reference(folder)


def _parse(
    source: str | os.PathLike[str] | ModelReference, recipes: str | Sequence[str | Recipe] | None
) -> tuple[ModelReference, list[Recipe]]:
    reference = source if isinstance(source, ModelReference) else parse_reference(source)
    if reference.recipe is not None:
        raise ModelReferenceError(
            f"{reference} names a form; convert takes the checkpoint and --to {reference.recipe.name}"
        )
    if recipes is None:
        recipes = default_recipe_names()
    elif isinstance(recipes, str):
        recipes = [recipes]
    parsed = [parse_recipe(recipe) if isinstance(recipe, str) else recipe for recipe in recipes]
    return reference, list({recipe.name: recipe for recipe in parsed}.values())


def _main_file(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """The `.gguf` file's name; empty for an MLX folder."""
    if isinstance(recipe, MlxRecipe):
        return ""
    return f"{checkpoint.name.rpartition('/')[2]}-{recipe.file_type}.gguf"


def _reused(artifact: Artifact, listener: ConversionListener) -> Converted:
    listener.on_reused(artifact)
    return Converted(artifact, 0.0, reused=True)


@dataclass(frozen=True, slots=True)
class _Job:
    """Makes what a survey found missing."""

    survey: _Survey
    listener: ConversionListener
    force: bool

    def make(self, recipe: Recipe) -> Converted:
        """Write and publish one form, unless another process did it since the survey."""
        store, reference, plan = self.survey.store, self.survey.reference, self.survey.plans[recipe.name]
        with store.writing(reference, recipe, lambda: self.listener.on_wait(recipe)) as staging:
            made_meanwhile = None if self.force else store.find(reference, recipe)
            if made_meanwhile and made_meanwhile.manifest.revision == self.survey.checkpoint.revision:
                return _reused(made_meanwhile, self.listener)
            started = time.perf_counter()
            files = self._write(plan, staging)
            seconds = time.perf_counter() - started
            manifest = self._manifest(plan, seconds, files, shown_name(staging))
            return Converted(store.publish(staging, manifest), seconds, reused=False)

    def _write(self, plan: Plan, staging: Path) -> list[WrittenFile]:
        def progress(done: int, total: int) -> None:
            self.listener.on_progress(plan.recipe, done, total)

        checkpoint = self.survey.checkpoint
        with checkpoint.weights, worker_pool() as pool:
            if not isinstance(plan, GgufPlan):
                return write_mlx(checkpoint, plan, staging, pool, progress)
            name = _main_file(checkpoint, plan.recipe)
            files = [write_gguf(checkpoint, plan, staging / name, pool, progress)]
        # The tokenizer's authority is the checkpoint's own files, for every form.
        copied = [checkpoint.folder / "config.json", *checkpoint.tokenizer_files()]
        return files + [hashed_copy(file, staging / file.name) for file in copied]

    def _manifest(self, plan: Plan, seconds: float, files: list[WrittenFile], model: str) -> Manifest:
        checkpoint = self.survey.checkpoint
        return Manifest(
            model=model,
            source=source_of(self.survey.reference),
            revision=checkpoint.revision,
            recipe=plan.recipe.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=library_versions(_LIBRARIES),
            parameters=checkpoint.parameters,
            weight_bytes=plan.weight_bytes,
            seconds=round(seconds, 3),
            main_file=_main_file(checkpoint, plan.recipe),
            files=tuple(FileRecord(file.path.name, file.bytes, file.sha256) for file in files),
        )
