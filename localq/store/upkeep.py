"""Upkeep of the models folder: what killed processes left, what was not used for long, and which files changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Lock

from localq.disk import disk_errors, reason
from localq.errors import StoreError
from localq.hardware import available_logical_cores
from localq.store.leftovers import Leftover, abandoned, clear, leftovers_in, remove_if_empty, tree_bytes
from localq.store.manifest import Artifact, FileRecord, read_artifact, read_manifest
from localq.store.store import Store, form_folders, has_lost_manifest

_BUFFER_BYTES = 4 << 20

Progress = Callable[[int, int], None]
"""Called with (bytes read, bytes in all)."""


def find_leftovers(store: Store, *, lost: bool = False) -> list[Leftover]:
    """What killed processes left, without what a running process is writing or deleting.

    With `lost` also the folders that have lost their manifest.
    """
    return _leftovers(store, lost, act=False)


def remove_leftovers(store: Store, *, lost: bool = False) -> list[Leftover]:
    """Delete what `find_leftovers` finds; a whole artifact whose place is empty is put back. Returns what was found."""
    return _leftovers(store, lost, act=True)


def _leftovers(store: Store, lost: bool, *, act: bool) -> list[Leftover]:
    found = []
    with disk_errors(store.folder):
        for model in store.models():
            without_manifest = {folder.name for folder in form_folders(model) if lost and has_lost_manifest(folder)}
            for recipe in sorted({*leftovers_in(model), *without_manifest}):
                with store.lock_if_free(model, recipe) as lock:
                    if lock is not None:
                        here = abandoned(leftovers_in(model).get(recipe, []), lock)
                        folder = model / recipe
                        if lost and has_lost_manifest(folder):
                            here.append(Leftover(folder, recipe, tree_bytes(folder)))
                        for leftover in here if act else ():
                            clear(leftover)
                        found += here
            if act:
                remove_if_empty(model)
    return found


def least_recently_used(
    artifacts: list[Artifact], older_than: timedelta | None = None, keep_bytes: int | None = None
) -> list[Artifact]:
    """Artifacts to delete, the one that was not used for longest first.

    Those that were not used for `older_than`, and further ones until the rest has at most `keep_bytes`.
    """
    ordered = sorted(artifacts, key=lambda artifact: artifact.last_used)
    left_bytes = sum(artifact.manifest.bytes for artifact in ordered)
    now = datetime.now(UTC)
    chosen = []
    for artifact in ordered:
        is_old = older_than is not None and now - artifact.last_used > older_than
        if is_old or (keep_bytes is not None and left_bytes > keep_bytes):
            chosen.append(artifact)
            left_bytes -= artifact.manifest.bytes
    return chosen


def sha256_of(file: Path, on_bytes: Callable[[int], None] = lambda count: None) -> str:
    """SHA-256 of a file's content; `on_bytes` gets the bytes of each piece. Raises OSError.

    A thread reads the next piece while this one is hashed: reading takes a fifth of the time.
    """
    size = max(1, min(_BUFFER_BYTES, file.stat().st_size))
    digest, buffers = hashlib.sha256(), [bytearray(size), bytearray(size)]
    with file.open("rb", buffering=0) as stream, ThreadPoolExecutor(1, thread_name_prefix="localq-read") as reader:
        coming = reader.submit(stream.readinto, buffers[0])
        while count := coming.result():
            buffers.reverse()
            coming = reader.submit(stream.readinto, buffers[0])
            digest.update(memoryview(buffers[1])[:count])
            on_bytes(count)
    return digest.hexdigest()


def changed_files(artifact: Artifact, progress: Progress) -> list[str]:
    """As `check_artifacts`, of one artifact."""
    return check_artifacts([artifact], progress)[0]


def check_artifacts(artifacts: Sequence[Artifact], progress: Progress) -> list[list[str]]:
    """For each artifact the names of files that are missing or whose SHA-256 is not that of the manifest.

    Reads all files, several at a time. An artifact that another process replaced meanwhile is checked as it is now; one
    that was removed has no changed files. Raises StoreError for a file that can't be read.
    """
    total, done = sum(artifact.manifest.bytes for artifact in artifacts), 0
    counting = Lock()

    def advance(count: int) -> None:
        nonlocal done
        with counting:
            done += count
            progress(done, total)

    jobs = [(artifact.folder, record) for artifact in artifacts for record in artifact.manifest.files]
    with ThreadPoolExecutor(available_logical_cores(), thread_name_prefix="localq-verify") as pool:
        largest_first = sorted(jobs, key=lambda job: -job[1].bytes)
        states = {job: pool.submit(_is_unchanged, *job, advance) for job in largest_first}
        unchanged = {job for job, state in states.items() if state.result()}
    changed = [
        [record.name for record in artifact.manifest.files if (artifact.folder, record) not in unchanged]
        for artifact in artifacts
    ]
    return [
        names and _changed_now(artifact, names, progress) for artifact, names in zip(artifacts, changed, strict=True)
    ]


def _is_unchanged(folder: Path, record: FileRecord, on_bytes: Callable[[int], None]) -> bool:
    try:
        return sha256_of(folder / record.name, on_bytes) == record.sha256
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    except OSError as error:
        raise StoreError(f"can't read {folder / record.name}: {reason(error)}") from error


def _changed_now(artifact: Artifact, names: list[str], progress: Progress) -> list[str]:
    """The changed files, unless the artifact itself was replaced or removed in the meantime."""
    if read_manifest(artifact.folder) == artifact.manifest:
        return names
    new = read_artifact(artifact.folder)
    return changed_files(new, progress) if new else []
