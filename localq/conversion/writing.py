"""All planned forms of a checkpoint in one pass, each into a folder of its own; publishes nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from localq.checkpoint.folder import Checkpoint
from localq.conversion.gguf import GgufFile
from localq.conversion.gguf_header import GgufMetadata
from localq.conversion.mlx import MlxFolder
from localq.conversion.output import WrittenFile, hashed_copy, hashed_text
from localq.conversion.pieces import worker_pool, write_pieces
from localq.conversion.plan_gguf import GgufPlan
from localq.conversion.quantizer import OtherBytesFound
from localq.conversion.survey import Plan, Survey, main_file
from localq.recipes import Recipe
from localq.store.manifest import FileRecord, Manifest
from localq.store.store import shown_name, source_of
from localq.text.tokenizer_json import read_tokenizer_json
from localq.version import library_versions

OnProgress = Callable[[Sequence[Recipe], int, int], None]
"""Told the recipes that are being made, and how many of the checkpoint's bytes of weights are done, of how many."""

_LIBRARIES = ("gguf", "llama-cpp-python", "mlx", "mlx-lm", "numpy", "tokenizers")


@dataclass(frozen=True, slots=True)
class Writers:
    """What writes the weights of a form."""

    gguf: type[GgufFile] = GgufFile
    mlx: type[MlxFolder] = MlxFolder

    def open(
        self, checkpoint: Checkpoint, plan: Plan, metadata: Future[GgufMetadata] | None, folder: Path
    ) -> GgufFile | MlxFolder:
        """A form being written; `metadata` are for a GGUF file."""
        if isinstance(plan, GgufPlan):
            assert metadata is not None, "it was begun for this form"
            return self.gguf(checkpoint, plan, metadata, folder / main_file(checkpoint, plan.recipe))
        return self.mlx(checkpoint, plan, folder)


@dataclass(frozen=True, slots=True)
class _Written:
    files: list[WrittenFile]
    quantizer: str | None
    """For a GGUF file."""


def write_forms(
    survey: Survey,
    folders: Mapping[str, Path],
    on_progress: OnProgress,
    writers: Writers | None = None,
    on_caveat: Callable[[str], None] | None = None,
) -> dict[str, Manifest]:
    """Make the planned forms that `folders` has an empty folder for, by the recipe's name, and tell what they hold.

    The manifests are not written yet. Raises errors of the tree in `localq.errors`.
    """
    started = time.perf_counter()
    try:
        written = _write(survey, folders, on_progress, writers or Writers())
    except OtherBytesFound:  # ggml does the work from here on
        for folder in folders.values():
            for file in folder.iterdir():
                file.unlink()
        written = _write(survey, folders, on_progress, writers or Writers())
        if on_caveat:
            on_caveat("localq's own quantizer gave other bytes than ggml's: the conversion was made again by ggml")
    seconds = time.perf_counter() - started
    return {
        name: _manifest(survey, survey.plans[name], seconds, written[name], shown_name(folder))
        for name, folder in folders.items()
    }


def _write(
    survey: Survey, folders: Mapping[str, Path], on_progress: OnProgress, writers: Writers
) -> dict[str, _Written]:
    checkpoint, plans = survey.checkpoint, [survey.plans[name] for name in folders]
    total = sum(checkpoint.tensor(layout).nbytes for layout in checkpoint.layouts)
    recipes = [plan.recipe for plan in plans]
    done = 0

    def advance(source_bytes: int) -> None:
        nonlocal done
        done += source_bytes
        on_progress(recipes, done // len(plans), total)

    with checkpoint.weights, worker_pool() as pool, ExitStack() as outputs:
        # While the first weights are computed: it takes a second for 128,000 tokens.
        metadata = pool.submit(survey.gguf_metadata) if survey.makes_gguf else None
        forms = [writers.open(checkpoint, plan, metadata, folders[plan.recipe.name]) for plan in plans]
        for form in forms:
            outputs.enter_context(form)
        write_pieces([form.pieces() for form in forms], pool, advance)
    # The tokenizer's authority is the checkpoint's own files, for every form, which is given tokenizer.json also
    # where the checkpoint has older files.
    return {
        plan.recipe.name: _Written(
            form.written + _copies(checkpoint, plan, folders[plan.recipe.name]),
            form.quantizer.name if isinstance(form, GgufFile) else None,
        )
        for plan, form in zip(plans, forms, strict=True)
    }


def _copies(checkpoint: Checkpoint, plan: Plan, folder: Path) -> list[WrittenFile]:
    files = checkpoint.tokenizer_files()
    if isinstance(plan, GgufPlan):
        files.append(checkpoint.folder / "config.json")
    copies = [hashed_copy(file, folder / file.name) for file in files]
    if not (folder / "tokenizer.json").exists():
        tokenizer = read_tokenizer_json(checkpoint.folder)
        copies.append(hashed_text(json.dumps(tokenizer, ensure_ascii=False), folder / "tokenizer.json"))
    return copies


def _manifest(survey: Survey, plan: Plan, seconds: float, written: _Written, model: str) -> Manifest:
    checkpoint = survey.checkpoint
    return Manifest(
        model=model,
        source=source_of(survey.reference),
        revision=checkpoint.revision,
        recipe=plan.recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=library_versions(_LIBRARIES),
        parameters=checkpoint.parameters,
        weight_bytes=plan.weight_bytes,
        seconds=round(seconds, 3),
        main_file=main_file(checkpoint, plan.recipe),
        files=tuple(FileRecord(file.path.name, file.bytes, file.sha256) for file in written.files),
        fallbacks=plan.fallbacks,
        pre_tokenizer=survey.request.pre_tokenizer if isinstance(plan, GgufPlan) else None,
        quantizer=written.quantizer,
    )
