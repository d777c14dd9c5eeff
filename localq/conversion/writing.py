"""All planned artifacts of a checkpoint in one pass, each into a folder of its own; publishes nothing."""

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
from localq.conversion.mlx import MlxFolder
from localq.conversion.output import WrittenFile, hashed_copy, hashed_text
from localq.conversion.pieces import worker_pool, write_pieces
from localq.conversion.plan import ConversionPlan, Plan, main_file
from localq.conversion.plan_gguf import GgufMetadata, GgufPlan
from localq.conversion.quantizer import OtherBytesFound
from localq.recipes import Recipe
from localq.store.manifest import FileRecord, Manifest
from localq.store.store import shown_name, source_of
from localq.trial import gguf, mlx
from localq.version import library_versions

OnProgress = Callable[[Sequence[Recipe], int, int], None]
"""Called with the recipes of this pass, the bytes of the checkpoint's weights that are done, and those in all."""

_LIBRARIES = ("gguf", "llama-cpp-python", "mlx", "mlx-lm", "numpy", "tokenizers")


@dataclass(frozen=True, slots=True)
class Writers:
    """What writes the weights of an artifact."""

    gguf: type[GgufFile] = GgufFile
    mlx: type[MlxFolder] = MlxFolder

    def open(
        self, checkpoint: Checkpoint, plan: Plan, metadata: Future[GgufMetadata] | None, folder: Path
    ) -> GgufFile | MlxFolder:
        """An artifact being written; `metadata` is for a GGUF file."""
        if isinstance(plan, GgufPlan):
            assert metadata is not None, "it is computed where a GGUF file is made"
            return self.gguf(checkpoint, plan, metadata, folder / main_file(checkpoint, plan.recipe))
        return self.mlx(checkpoint, plan, folder)


@dataclass(frozen=True, slots=True)
class _Written:
    files: list[WrittenFile]
    quantizer: str | None
    """For a GGUF file."""


def write_forms(
    plan: ConversionPlan,
    folders: Mapping[str, Path],
    on_progress: OnProgress,
    writers: Writers | None = None,
    on_caveat: Callable[[str], None] | None = None,
) -> dict[str, Manifest]:
    """Make the planned artifacts for which `folders` has an empty folder, by the recipe's name; returns manifests.

    The manifests are not written yet. Raises errors of the tree in `localq.errors`.
    """
    started = time.perf_counter()
    try:
        written = _write(plan, folders, on_progress, writers or Writers())
    except OtherBytesFound:  # ggml does the work from here on
        for folder in folders.values():
            for file in folder.iterdir():
                file.unlink()
        written = _write(plan, folders, on_progress, writers or Writers())
        if on_caveat:
            on_caveat("localq's own quantizer gave other bytes than ggml's: the conversion was made again by ggml")
    seconds = time.perf_counter() - started
    for name, folder in folders.items():
        if isinstance(plan.plans[name], GgufPlan):
            gguf.trust(folder / main_file(plan.checkpoint, plan.plans[name].recipe))
        else:
            mlx.trust(folder)
    return {
        name: _manifest(plan, plan.plans[name], seconds, written[name], shown_name(folder))
        for name, folder in folders.items()
    }


def _write(
    plan: ConversionPlan, folders: Mapping[str, Path], on_progress: OnProgress, writers: Writers
) -> dict[str, _Written]:
    checkpoint, plans = plan.checkpoint, [plan.plans[name] for name in folders]
    total = sum(checkpoint.tensor(layout).nbytes for layout in checkpoint.layouts)
    recipes = [planned.recipe for planned in plans]
    done = 0

    def advance(source_bytes: int) -> None:
        nonlocal done
        done += source_bytes
        on_progress(recipes, done // len(plans), total)

    with checkpoint.weights, worker_pool() as pool, ExitStack() as outputs:
        # In a worker thread, beside the first weights: it takes a second for 128,000 tokens.
        metadata = pool.submit(plan.gguf_metadata) if plan.makes_gguf else None
        forms = [writers.open(checkpoint, planned, metadata, folders[planned.recipe.name]) for planned in plans]
        for form in forms:
            outputs.enter_context(form)
        write_pieces([form.pieces() for form in forms], pool, advance)
    return {
        planned.recipe.name: _Written(
            form.written + _copies(plan, planned, folders[planned.recipe.name]),
            form.quantizer.name if isinstance(form, GgufFile) else None,
        )
        for planned, form in zip(plans, forms, strict=True)
    }


def _copies(plan: ConversionPlan, planned: Plan, folder: Path) -> list[WrittenFile]:
    """The checkpoint's own tokenizer files, with which localq tokenizes whatever the format.

    An artifact gets a `tokenizer.json` also where the checkpoint has older files instead.
    """
    files = plan.checkpoint.tokenizer_files()
    if isinstance(planned, GgufPlan):
        files.append(plan.checkpoint.folder / "config.json")
    copies = [hashed_copy(file, folder / file.name) for file in files]
    if not (folder / "tokenizer.json").exists():
        copies.append(hashed_text(json.dumps(plan.tokenizer.json, ensure_ascii=False), folder / "tokenizer.json"))
    return copies


def _manifest(plan: ConversionPlan, planned: Plan, seconds: float, written: _Written, model: str) -> Manifest:
    checkpoint = plan.checkpoint
    return Manifest(
        model=model,
        source=source_of(plan.reference),
        revision=checkpoint.revision,
        recipe=planned.recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=library_versions(_LIBRARIES),
        parameters=checkpoint.parameters,
        weight_bytes=planned.weight_bytes,
        seconds=round(seconds, 3),
        main_file=main_file(checkpoint, planned.recipe),
        files=tuple(FileRecord(file.path.name, file.bytes, file.sha256) for file in written.files),
        fallbacks=planned.fallbacks,
        pre_tokenizer=plan.request.pre_tokenizer if isinstance(planned, GgufPlan) else None,
        quantizer=written.quantizer,
        importance=plan.importance.record if plan.importance and planned.recipe.calibrated else None,
        predicted_kl_divergence=planned.predicted_kl_divergence,
    )
