"""Upkeep of the models folder: delete what killed processes left, and compare artifacts with their hashes."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localq.disk import disk_errors
from localq.store.manifest import Artifact
from localq.store.store import Store, remove_if_empty

_LEFTOVER = re.compile(r"\.(?P<recipe>.+)\.(partial|replaced|removed-(?P<process>\d+))")
_BLOCK_BYTES = 1 << 20

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all)."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A folder that was half written or half deleted."""

    path: Path
    bytes: int


def find_leftovers(store: Store) -> list[Leftover]:
    """What killed processes left, without what a running process is writing or deleting."""
    leftovers = []
    with disk_errors(store.folder):
        for folder in sorted(store.folder.glob("*/.*")):
            found = _LEFTOVER.fullmatch(folder.name)
            if found and folder.is_dir() and not _is_in_use(found, store, folder.parent):
                nbytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                leftovers.append(Leftover(folder, nbytes))
    return leftovers


def remove_leftovers(store: Store) -> list[Leftover]:
    """Delete what `find_leftovers` finds; returns it."""
    leftovers = find_leftovers(store)
    with disk_errors(store.folder):
        for leftover in leftovers:
            shutil.rmtree(leftover.path)
            remove_if_empty(leftover.path.parent)
    return leftovers


def _is_in_use(found: re.Match[str], store: Store, model: Path) -> bool:
    """Whether a process is writing it, by the lock, or deleting it, by the process id in the name."""
    import psutil

    if found["process"] is not None:
        return bool(psutil.pid_exists(int(found["process"])))
    return store.is_being_written(model, found["recipe"])


def changed_files(artifact: Artifact, progress: Progress) -> list[str]:
    """Names of files that are missing or whose SHA-256 is not that of the manifest. Reads all files."""
    total, done, changed = artifact.manifest.bytes, 0, []
    for record in artifact.manifest.files:
        digest = hashlib.sha256()
        file = artifact.folder / record.name
        with disk_errors(artifact.folder):
            if file.is_file():
                with file.open("rb") as stream:
                    while block := stream.read(_BLOCK_BYTES):
                        digest.update(block)
                        done += len(block)
                        progress(done, total)
        if digest.hexdigest() != record.sha256:
            changed.append(record.name)
    return changed
