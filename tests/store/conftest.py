"""Artifacts without a conversion: a few bytes under a true manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from localq.recipes import parse_recipe
from localq.reference import ModelReference, parse_reference
from localq.store.manifest import Artifact, FileRecord, Manifest
from localq.store.store import Store, shown_name, source_of


def fail_on_wait() -> None:
    raise AssertionError("nobody else writes here")


def write_files(staging: Path, content: bytes) -> tuple[FileRecord, ...]:
    """Two files of an artifact, and their records."""
    records = []
    for name, data in (("model.gguf", content), ("config.json", b"{}")):
        (staging / name).write_bytes(data)
        records.append(FileRecord(name, len(data), hashlib.sha256(data).hexdigest()))
    return tuple(records)


def manifest_of(
    reference: ModelReference, recipe: str, model: str, files: tuple[FileRecord, ...], revision: str = "1"
) -> Manifest:
    return Manifest(
        model=model,
        source=source_of(reference),
        revision=revision,
        recipe=recipe,
        created="2025-01-02T03:04:05+00:00",
        versions={"localq": "0"},
        parameters=16,
        weight_bytes=files[0].bytes,
        seconds=0.5,
        main_file=files[0].name if recipe.startswith("gguf") else "",
        files=files,
    )


Make = Callable[..., Artifact]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture
def make(store: Store) -> Make:
    """Publishes an artifact of a reference, given as text, with `content` as its weights."""

    def publish(text: str, recipe: str = "gguf-q4_0", content: bytes = b"weights", revision: str = "1") -> Artifact:
        reference = parse_reference(text)
        with store.writing(reference, parse_recipe(recipe), fail_on_wait) as staging:
            files = write_files(staging, content)
            return store.publish(staging, manifest_of(reference, recipe, shown_name(staging), files, revision))

    return publish
