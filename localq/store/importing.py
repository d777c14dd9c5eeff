"""Take an artifact that another program made, or another localq, into the models folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from localq.copying import How, copy_file
from localq.disk import disk_errors
from localq.errors import StoreError
from localq.reference import ModelReference, named_model
from localq.store.foreign import ForeignArtifact
from localq.store.manifest import Artifact, FileRecord, Manifest
from localq.store.store import Store, shown_name
from localq.store.upkeep import sha256_of
from localq.version import library_versions

Check = Callable[[Artifact], None]
"""Raises an error of the tree for an artifact that can't be opened; its folder is not in place yet."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file or folder."""

    artifact: Artifact
    how: How


def import_artifact(
    store: Store, found: ForeignArtifact, check: Check, *, name: str | None = None, force: bool = False
) -> Imported:
    """Publish the files of `found` as an artifact of the model `name`, by reflink, hard link or copy.

    With `force` an artifact of that name and format is replaced. Raises StoreError, or what `check` raises; then
    nothing is left.
    """
    reference = named_model(_plain(found.name) if name is None else name)
    _require_free_name(store, found, reference, force)
    with store.writing(reference, found.recipe, lambda: None) as staging:
        with disk_errors(store.folder):
            how = _take(store, found, staging)
            manifest = _manifest(found, shown_name(staging), staging)
        check(Artifact(staging, manifest))
        return Imported(store.publish(staging, manifest), how)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_./@-]", "-", name).lstrip("_.-/") or "model"


def _require_free_name(store: Store, found: ForeignArtifact, reference: ModelReference, force: bool) -> None:
    """Raise StoreError where the name is that of a converted model, or has this format already."""
    is_imported = found.manifest is None or found.manifest.imported
    for form in store.forms(reference):
        other = form.manifest
        if other.imported != is_imported or (found.manifest and found.manifest.source != other.source):
            raise StoreError(
                f"{reference.name} is a model that localq made from {other.source}", "choose another name with --name"
            )
        if form.recipe == found.recipe and not force:
            raise StoreError(f"{form.name} is there already", "--force replaces it; --name gives another name")


def _take(store: Store, found: ForeignArtifact, staging: Path) -> How:
    """Every file into the staging folder; returns what took most room."""
    sizes = [file.stat().st_size for file in found.files]
    ways: list[How] = []
    for number, file in enumerate(found.files):
        check_room = partial(store.check_room, sum(sizes[number:]))
        ways.append(copy_file(file, staging / file.name, may_link=True, before_copy=check_room))
    return max(ways, key=("reflink", "hard link", "copy").index)


def _manifest(found: ForeignArtifact, model: str, staging: Path) -> Manifest:
    """Of the files as they are in the staging folder."""
    records = []
    for file in found.files:
        taken = staging / file.name
        records.append(FileRecord(file.name, taken.stat().st_size, sha256_of(taken)))
    files = tuple(records)
    if found.manifest is not None:
        if files != found.manifest.files:
            raise StoreError(f"{found.source} is damaged: its files are not those of its manifest")
        return replace(found.manifest, model=model)
    return Manifest(
        model=model,
        source=str(found.source),
        revision=files[0].sha256,
        recipe=found.recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=library_versions(()),
        parameters=found.parameters,
        weight_bytes=found.weight_bytes,
        seconds=0.0,
        main_file=found.main_file,
        files=files,
        imported=True,
    )
