"""What the hub lists for a repository, and how much of it the cache holds. Asks no network."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from localq.errors import DownloadError


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository."""

    size_bytes: int
    etag: str
    """The name that its contents have in the cache."""


@dataclass(frozen=True, slots=True)
class Repository:
    """What the hub lists for one commit of a repository."""

    repo: str
    commit: str
    files: Mapping[str, RemoteFile]
    cache: Path
    """The repository's folder in the cache."""
    is_mlx: bool
    """Whether its owner says that it is for MLX."""

    @property
    def folder(self) -> Path:
        """Where the files of this commit lie, or will."""
        return self.cache / "snapshots" / self.commit

    def is_damaged(self, name: str) -> bool:
        """Whether the cache holds the file at a wrong length; the client itself would take it as it is."""
        return bool(self._lengths_on_disk(name) - {self.files[name].size_bytes})

    def require_room(self, names: Collection[str]) -> None:
        """Raise DownloadError unless the disk has room for what is missing of these files."""
        needed_bytes = sum(self.files[name].size_bytes for name in names if self._is_missing(name))
        existing = next(folder for folder in (self.cache, *self.cache.parents) if folder.exists())
        free_bytes = shutil.disk_usage(existing).free
        if needed_bytes > free_bytes:
            raise DownloadError(
                f"{self.repo} needs {needed_bytes / 1e9:.3f} GB more in {self.cache.parent}, "
                f"which has {free_bytes / 1e9:.3f} GB free",
                "free some space, or point HF_HOME to another disk",
            )

    def _is_missing(self, name: str) -> bool:
        """Whether the file's bytes have to travel; an unchanged file of another commit needs only a link."""
        return self.files[name].size_bytes not in self._lengths_on_disk(name)

    def _lengths_on_disk(self, name: str) -> set[int]:
        blob = self.cache / "blobs" / self.files[name].etag
        return {path.stat().st_size for path in (self.folder / name, blob) if path.is_file()}
