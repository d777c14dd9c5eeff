"""The verb: turn a checkpoint into artifacts, or find those that were made before.

All forms of one call are made in one pass over the checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from localq.checkpoint.hub import DownloadProgress
from localq.checkpoint.source import cached_checkpoint, resolve_checkpoint
from localq.conversion.gguf import GgufFile
from localq.conversion.gguf_header import GgufMetadata
from localq.conversion.mlx import MlxFolder
from localq.conversion.output import WrittenFile, hashed_copy, hashed_text
from localq.conversion.pieces import worker_pool, write_pieces
from localq.conversion.plan_gguf import GgufPlan
from localq.conversion.survey import Plan, PlannedForm, Recipes, Request, Source, Survey, main_file, survey
from localq.recipes import Recipe
from localq.store.manifest import Artifact, FileRecord, Manifest
from localq.store.store import Store, shown_name, source_of
from localq.store.upkeep import remove_leftovers
from localq.text.tokenizer_json import read_tokenizer_json
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
                started = time.perf_counter()
                files = self._write(stagings)
                seconds = time.perf_counter() - started
                for name, staging in stagings.items():
                    manifest = self._manifest(self.survey.plans[name], seconds, files[name], shown_name(staging))
                    made[name] = Converted(self.survey.store.publish(staging, manifest), seconds, reused=False)
        return made

    def _lock(self, recipe: Recipe) -> AbstractContextManager[Path]:
        return self.survey.store.writing(self.survey.reference, recipe, lambda: self.listener.on_wait(recipe))

    def _made_meanwhile(self, recipe: Recipe) -> Artifact | None:
        if self.survey.request.force:
            return None
        artifact = self.survey.store.find(self.survey.reference, recipe)
        is_current = artifact is not None and self.survey.is_current(artifact)
        return artifact if is_current else None

    def _write(self, stagings: dict[str, Path]) -> dict[str, list[WrittenFile]]:
        checkpoint, plans = self.survey.checkpoint, [self.survey.plans[name] for name in stagings]
        total = sum(checkpoint.tensor(layout).nbytes for layout in checkpoint.layouts)
        recipes = [plan.recipe for plan in plans]
        done = 0

        def advance(source_bytes: int) -> None:
            nonlocal done
            done += source_bytes
            self.listener.on_progress(recipes, done // len(plans), total)

        with checkpoint.weights, worker_pool() as pool, ExitStack() as outputs:
            # While the first weights are computed: it takes a second for 128,000 tokens.
            metadata = pool.submit(self.survey.gguf_metadata) if self.survey.makes_gguf else None
            forms = [self._form(plan, metadata, stagings[plan.recipe.name]) for plan in plans]
            for form in forms:
                outputs.enter_context(form)
            write_pieces([form.pieces() for form in forms], pool, advance)
        # The tokenizer's authority is the checkpoint's own files, for every form, which is given tokenizer.json also
        # where the checkpoint has older files.
        return {
            plan.recipe.name: form.written + self._copies(plan, stagings[plan.recipe.name])
            for plan, form in zip(plans, forms, strict=True)
        }

    def _form(self, plan: Plan, metadata: Future[GgufMetadata] | None, staging: Path) -> GgufFile | MlxFolder:
        checkpoint = self.survey.checkpoint
        if isinstance(plan, GgufPlan):
            assert metadata is not None, "it was begun for this form"
            return GgufFile(checkpoint, plan, metadata, staging / main_file(checkpoint, plan.recipe))
        return MlxFolder(checkpoint, plan, staging)

    def _copies(self, plan: Plan, staging: Path) -> list[WrittenFile]:
        files = self.survey.checkpoint.tokenizer_files()
        if isinstance(plan, GgufPlan):
            files.append(self.survey.checkpoint.folder / "config.json")
        copies = [hashed_copy(file, staging / file.name) for file in files]
        if not (staging / "tokenizer.json").exists():
            tokenizer = read_tokenizer_json(self.survey.checkpoint.folder)
            copies.append(hashed_text(json.dumps(tokenizer, ensure_ascii=False), staging / "tokenizer.json"))
        return copies

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
            main_file=main_file(checkpoint, plan.recipe),
            files=tuple(FileRecord(file.path.name, file.bytes, file.sha256) for file in files),
            fallbacks=plan.fallbacks,
            pre_tokenizer=self.survey.request.pre_tokenizer if isinstance(plan, GgufPlan) else None,
        )
