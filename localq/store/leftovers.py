"""Folders beside an artifact that a killed process left: put back in place, or deleted.

.<recipe>.partial-<machine>-<random>     being written; after `--force` put it in place, the old artifact
.<recipe>.temporary-<machine>-<random>   being written, never to become an artifact
.<recipe>.replaced-<machine>-<random>    the old artifact, for a moment, where two names can't be exchanged in one step
.<recipe>.removed-<machine>-<random>     being deleted

Who holds the lock of the recipe owns them all.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localq.disk import delete_tree, put_in_place, reason, sync_folder
from localq.errors import StoreError
from localq.store.locks import Lock
from localq.store.manifest import read_artifact

Kind = Literal["partial", "temporary", "replaced", "removed"]

_NAME = re.compile(
    r"\.(?P<recipe>(mlx|gguf)-[a-z0-9._-]{1,60})\.(?P<kind>partial|temporary|replaced|removed)(-(?P<machine>[0-9a-f]{6})-[0-9a-f]{8}|-\d+)?"
)
"""Without machine as earlier versions of localq wrote it."""

_ABANDONED_SECONDS = 600
"""Where no lock says it: a folder in which nothing was written for so long has no writer any more."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that was half written or half deleted, or an artifact that was out of its place."""

    path: Path
    recipe: str
    bytes: int
    is_artifact: bool = False
    """Whether it is whole and its place is empty: it is put back."""


def leftover_path(model: Path, recipe: str, kind: Kind) -> Path:
    """A name that nothing has."""
    return model / f".{recipe}.{kind}-{_machine()}-{secrets.token_hex(4)}"


def leftovers_in(model: Path) -> dict[str, list[Path]]:
    """Everything in a model's folder that is named as a leftover, by recipe; those of running processes too."""
    found: dict[str, list[Path]] = {}
    for path in children(model):
        if match := _NAME.fullmatch(path.name):
            found.setdefault(match["recipe"], []).append(path)
    return found


def abandoned(paths: list[Path], lock: Lock) -> list[Leftover]:
    """Those that no process works on, artifacts first. The caller holds the lock of their recipe."""
    found = []
    for path in paths:
        match = _NAME.fullmatch(path.name)
        assert match is not None, "leftovers_in gave it"
        is_own = lock.works and match["machine"] in (None, _machine())
        if is_own or time.time() - _newest(path) > _ABANDONED_SECONDS:
            place = path.with_name(match["recipe"])
            may_go_back = match["kind"] in ("partial", "replaced") and not os.path.lexists(place)
            is_artifact = _is_whole(path) if may_go_back else False
            if is_artifact is not None:
                found.append(Leftover(path, match["recipe"], tree_bytes(path), is_artifact))
    return sorted(found, key=lambda leftover: (not leftover.is_artifact, leftover.path))


def clear(leftover: Leftover) -> None:
    """Put an artifact back in its place, if that is still empty, and delete everything else. Raises OSError."""
    place = leftover.path.with_name(leftover.recipe)
    if leftover.is_artifact and not os.path.lexists(place):
        put_in_place(leftover.path, place, leftover.path)
    else:
        delete_tree(leftover.path)


def tree_bytes(folder: Path) -> int:
    """Of all files in a folder, or of one file; what disappears meanwhile counts nothing."""
    nbytes = 0
    for path in _tree(folder):
        with suppress(OSError):
            found = path.lstat()
            nbytes += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return nbytes


def children(folder: Path) -> list[Path]:
    """What is in a folder, sorted; nothing where there is no such folder. Raises StoreError if it can't be read."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"can't read {folder}: {reason(error)}", "check its permissions, and the disk") from error


def remove_if_empty(folder: Path) -> None:
    """Delete a model's folder if nothing is in it."""
    with suppress(OSError):  # it is not empty, or another process is writing there
        folder.rmdir()
        sync_folder(folder.parent)


def _is_whole(folder: Path) -> bool | None:
    """None where that can't be known now, because something can't be read."""
    try:
        return read_artifact(folder) is not None
    except StoreError as error:
        return None if isinstance(error.__cause__, OSError) else False


def _newest(path: Path) -> float:
    times = [0.0]
    for inside in _tree(path):
        with suppress(OSError):
            times.append(inside.lstat().st_mtime)
    return max(times)


def _tree(path: Path) -> Iterator[Path]:
    yield path
    if not path.is_symlink():
        for folder, folders, files in os.walk(path):
            yield from (Path(folder, name) for name in (*folders, *files))


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]
