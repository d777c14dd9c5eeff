"""The verb: turn a checkpoint into artifacts, or find those that were made before."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.hub import DownloadProgress
from localq.checkpoint.source import resolve_checkpoint
from localq.conversion.gguf import write_gguf
from localq.conversion.mlx import write_mlx
from localq.conversion.output import WrittenFile, hashed_copy
from localq.conversion.pieces import worker_pool
from localq.conversion.plan import GgufPlan, Plan, make_plan
from localq.engines.availability import require_backend
from localq.errors import ModelReferenceError
from localq.recipes import DEFAULT_RECIPES, Recipe, parse_recipe
from localq.reference import ModelReference, parse_reference
from localq.store.manifest import Artifact, FileRecord, Manifest
from localq.store.store import Store, shown_name, source_of
from localq.version import __version__

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
    """What a conversion would write (`--dry-run`)."""

    model: str
    recipe: Recipe
    weight_bytes: int
    parameters: int

    @property
    def bits_per_weight(self) -> float:
        """8 x weight bytes / parameters."""
        return 8 * self.weight_bytes / self.parameters


def convert(
    source: str | ModelReference,
    recipes: str | Sequence[str | Recipe] = DEFAULT_RECIPES,
    *,
    models_dir: Path | str | None = None,
    force: bool = False,
    listener: ConversionListener | None = None,
) -> list[Artifact]:
    """Make the forms of a checkpoint that are not there yet; all of them anew with `force`.

    `source` is a model reference; a repository is pulled when it is not in the Hugging Face cache. The disk
    is checked for room for all forms before any work starts. Raises errors of the tree in `localq.errors`.
    """
    made = make_forms(source, recipes, models_dir=models_dir, force=force, listener=listener)
    return [converted.artifact for converted in made]


def make_forms(
    source: str | ModelReference,
    recipes: str | Sequence[str | Recipe],
    *,
    models_dir: Path | str | None = None,
    force: bool = False,
    listener: ConversionListener | None = None,
) -> list[Converted]:
    """As `convert`, and tells of each form whether it was there and how long it took."""
    listener = listener or ConversionListener()
    store = Store(models_dir)
    reference, wanted = _parse(source, recipes)
    for recipe in wanted:
        require_backend(recipe.format)
    found = {} if force else {r.name: a for r in wanted if (a := store.find(reference, r)) is not None}
    if reference.kind == "repo" and len(found) == len(wanted):
        # A repository's artifacts stay valid as they are: no need of its checkpoint, which may be gone.
        for artifact in found.values():
            listener.on_reused(artifact)
        return [Converted(found[recipe.name], 0.0, reused=True) for recipe in wanted]
    checkpoint = resolve_checkpoint(reference, listener.on_download)
    current = {name: artifact for name, artifact in found.items() if artifact.manifest.revision == checkpoint.revision}
    for name in found.keys() - current.keys():
        listener.on_outdated(found[name])
    plans = {recipe.name: make_plan(checkpoint, recipe) for recipe in wanted if recipe.name not in current}
    store.check_room(sum(plan.weight_bytes for plan in plans.values()))
    job = _Job(store, reference, checkpoint, listener, force)
    return [
        _reused(current[recipe.name], listener) if recipe.name in current else job.make(plans[recipe.name])
        for recipe in wanted
    ]


def plan_conversion(
    source: str | ModelReference, recipes: Sequence[str | Recipe], listener: ConversionListener | None = None
) -> list[PlannedForm]:
    """What `convert` would write, without writing: exact sizes from the plans."""
    reference, wanted = _parse(source, recipes)
    checkpoint = resolve_checkpoint(reference, listener.on_download if listener else None)
    plans = [make_plan(checkpoint, recipe) for recipe in wanted]
    return [PlannedForm(str(reference), plan.recipe, plan.weight_bytes, checkpoint.parameters) for plan in plans]


def _parse(source: str | ModelReference, recipes: str | Sequence[str | Recipe]) -> tuple[ModelReference, list[Recipe]]:
    reference = parse_reference(source) if isinstance(source, str) else source
    if reference.recipe is not None:
        raise ModelReferenceError(
            f"{reference} names a form; convert takes the checkpoint and --to {reference.recipe.name}"
        )
    recipes = [recipes] if isinstance(recipes, str) else recipes
    parsed = [parse_recipe(recipe) if isinstance(recipe, str) else recipe for recipe in recipes]
    return reference, list({recipe.name: recipe for recipe in parsed}.values())


def _reused(artifact: Artifact, listener: ConversionListener) -> Converted:
    listener.on_reused(artifact)
    return Converted(artifact, 0.0, reused=True)


@dataclass(frozen=True, slots=True)
class _Job:
    """One checkpoint on its way into the store."""

    store: Store
    reference: ModelReference
    checkpoint: Checkpoint
    listener: ConversionListener
    force: bool

    def make(self, plan: Plan) -> Converted:
        """Write and publish one form, unless another process did it while this one waited."""
        recipe = plan.recipe
        waited = False

        def on_wait() -> None:
            nonlocal waited
            waited = True
            self.listener.on_wait(recipe)

        with self.store.writing(self.reference, recipe, on_wait) as staging:
            made_meanwhile = self.store.find(self.reference, recipe) if waited and not self.force else None
            if made_meanwhile and made_meanwhile.manifest.revision == self.checkpoint.revision:
                return _reused(made_meanwhile, self.listener)
            started = time.perf_counter()
            main_file, files = self._write(plan, staging)
            seconds = time.perf_counter() - started
            manifest = self._manifest(plan, seconds, main_file, files, shown_name(staging))
            return Converted(self.store.publish(staging, manifest), seconds, reused=False)

    def _write(self, plan: Plan, staging: Path) -> tuple[str, list[WrittenFile]]:
        def progress(done: int, total: int) -> None:
            self.listener.on_progress(plan.recipe, done, total)

        with self.checkpoint.weights, worker_pool() as pool:
            if not isinstance(plan, GgufPlan):
                return "", write_mlx(self.checkpoint, plan, staging, pool, progress)
            name = f"{self.checkpoint.name.rpartition('/')[2]}-{plan.recipe.file_type}.gguf"
            files = [write_gguf(self.checkpoint, plan, staging / name, pool, progress)]
        # The tokenizer's authority is the checkpoint's own files, for every form.
        copied = [self.checkpoint.folder / "config.json", *self.checkpoint.tokenizer_files()]
        return name, files + [hashed_copy(file, staging / file.name) for file in copied]

    def _manifest(self, plan: Plan, seconds: float, main_file: str, files: list[WrittenFile], model: str) -> Manifest:
        return Manifest(
            model=model,
            source=source_of(self.reference),
            revision=self.checkpoint.revision,
            recipe=plan.recipe.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
            parameters=self.checkpoint.parameters,
            weight_bytes=plan.weight_bytes,
            seconds=round(seconds, 3),
            main_file=main_file,
            files=tuple(FileRecord(file.path.name, file.bytes, file.sha256) for file in files),
        )


def _versions() -> dict[str, str]:
    versions = {"localq": __version__}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
