"""From a reference to an open checkpoint: a built-in, a folder, or a repository that is pulled when needed."""

from __future__ import annotations

from localq.checkpoint.folder import Checkpoint, open_checkpoint
from localq.checkpoint.hub import DownloadProgress, Snapshot, find_snapshot, pull
from localq.errors import CheckpointError
from localq.reference import ModelReference


def resolve_checkpoint(reference: ModelReference, on_download: DownloadProgress | None = None) -> Checkpoint:
    """Open the checkpoint that a reference names; pulls a repository that is not in the cache.

    Raises CheckpointError, UnsupportedModelError, ModelNotFoundError or DownloadError.
    """
    if reference.kind == "gguf":
        raise CheckpointError(
            f"{reference.path} is a converted file, not a checkpoint",
            "convert from the checkpoint in Hugging Face format that it was made from",
        )
    if reference.kind == "repo":
        snapshot = fetch_snapshot(reference, on_download)
        return open_checkpoint(snapshot.folder, reference.name, snapshot.revision)
    assert reference.path is not None
    return open_checkpoint(reference.path, reference.name)


def fetch_snapshot(reference: ModelReference, on_download: DownloadProgress | None = None) -> Snapshot:
    """The snapshot of a repository: from the cache where it is complete, else pulled."""
    cached = find_snapshot(reference.name, reference.revision)
    return cached or pull(reference.name, reference.revision, on_download)
