"""From a reference to an open checkpoint: a built-in, a folder, or a repository that is pulled when needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localq.checkpoint.folder import Checkpoint, open_checkpoint, read_config
from localq.checkpoint.hub import DownloadProgress, Snapshot, find_snapshot, pull
from localq.errors import CheckpointError, ModelNotFoundError
from localq.reference import ModelReference, is_local


def resolve_checkpoint(reference: ModelReference, on_download: DownloadProgress | None = None) -> Checkpoint:
    """Open the checkpoint that a reference names; pulls a repository that is not in the cache.

    Raises CheckpointError, UnsupportedModelError, ModelNotFoundError or DownloadError.
    """
    return _place(reference, lambda: fetch_snapshot(reference, on_download)).open()


def cached_checkpoint(reference: ModelReference) -> Checkpoint:
    """As `resolve_checkpoint`, but asks no network: raises ModelNotFoundError for what is not in the cache."""
    return cached_place(reference).open()


@dataclass(frozen=True, slots=True)
class CheckpointPlace:
    """Where a checkpoint lies, before anything of it is read."""

    folder: Path
    name: str
    revision: str | None
    """The hub's commit; None for a folder."""

    def open(self) -> Checkpoint:
        """Read and check it."""
        return open_checkpoint(self.folder, self.name, self.revision)


def cached_place(reference: ModelReference) -> CheckpointPlace:
    """The folder that a reference names; asks no network. Raises as `cached_checkpoint`."""
    return _place(reference, lambda: _cached_snapshot(reference))


def _place(reference: ModelReference, snapshot_of_repository: Callable[[], Snapshot]) -> CheckpointPlace:
    if reference.kind == "gguf":
        raise CheckpointError(
            f"{reference.path} is a converted file, not a checkpoint",
            "convert from the checkpoint in Hugging Face format that it was made from",
        )
    if reference.kind == "repo":
        _refuse_local(reference.name)
        snapshot = snapshot_of_repository()
        return CheckpointPlace(snapshot.folder, reference.name, snapshot.revision)
    assert reference.path is not None
    return CheckpointPlace(reference.path, reference.name, None)


def fetch_snapshot(reference: ModelReference, on_download: DownloadProgress | None = None) -> Snapshot:
    """The snapshot of a repository: from the cache where it is complete, else pulled."""
    return find_snapshot(reference.name, reference.revision) or pull_checkpoint(reference, on_download)


def pull_checkpoint(reference: ModelReference, on_download: DownloadProgress | None = None) -> Snapshot:
    """Bring a repository into the cache, or up to date; one that localq can't convert is refused by its config.json.

    Raises UnsupportedModelError or CheckpointError then, before the weights travel, ModelNotFoundError for a name
    such as `local/model`, else as `hub.pull` does.
    """
    _refuse_local(reference.name)
    return pull(reference.name, reference.revision, on_download, read_config)


def _cached_snapshot(reference: ModelReference) -> Snapshot:
    cached = find_snapshot(reference.name, reference.revision)
    if cached is None:
        raise ModelNotFoundError(
            f"{reference} is not complete in the Hugging Face cache", f"`localq pull {reference}` brings it"
        )
    return cached


def _refuse_local(repo: str) -> None:
    """`local/name` is what the store calls a checkpoint folder: it finds forms that were made, never a repository."""
    if is_local(repo):
        raise ModelNotFoundError(
            f"{repo} is no repository, but names a checkpoint folder that was converted; its forms are not here",
            "`localq ls` lists what is there; to convert the folder, give its path",
        )
