"""Give an artifact's files to other programs: a `.gguf` file, or an MLX folder, without localq's manifest.

By reflink or copy, never by a hard link: who changes the exported file must not change the artifact.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from localq.copying import How, copy_file
from localq.disk import delete_tree, put_in_place, sync_folder, writing_errors
from localq.errors import OptionError
from localq.gguf_file import part_names
from localq.store.manifest import Artifact


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    path: Path
    """The `.gguf` file, the first part of a split one, or the MLX folder."""
    how: How


def export_artifact(artifact: Artifact, destination: Path, *, force: bool = False) -> Exported:
    """Write the files of an artifact to `destination`, all of them or none.

    A GGUF artifact becomes a file, in `destination` where that is a folder; an MLX artifact becomes a folder. With
    `force` the file, or an MLX folder, that is there is replaced. Raises OptionError for a destination that does not
    fit, LocalqError for one that can't be written.
    """
    destination = destination.expanduser().absolute()
    if artifact.manifest.main_file:
        return _export_file(artifact, destination, force)
    return _export_folder(artifact, destination, force)


def _export_file(artifact: Artifact, destination: Path, force: bool) -> Exported:
    names = part_names(artifact.path.name)
    if destination.is_dir():
        targets = [destination / name for name in names]
    elif len(names) > 1:
        raise OptionError(f"{artifact.name} has {len(names)} files, and {destination} is no folder", "give a folder")
    elif destination.suffix != ".gguf":
        raise OptionError(f"there is no folder {destination}", "give a folder, or a name that ends in .gguf")
    else:
        targets = [destination]
    _require_parent(targets[0])
    for target in targets:
        if target.is_dir():
            raise OptionError(f"{target} is a folder", "give another name")
        if os.path.lexists(target) and not force:
            raise _already_there(target)
    beside = [_beside(target) for target in targets]
    with writing_errors(targets[0]):
        try:
            ways = [copy_file(artifact.folder / name, file) for name, file in zip(names, beside, strict=True)]
            for file, target in zip(beside, targets, strict=True):
                file.replace(target)
            sync_folder(targets[0].parent)
        finally:
            for file in beside:
                file.unlink(missing_ok=True)
    return Exported(targets[0], ways[-1])


def _export_folder(artifact: Artifact, destination: Path, force: bool) -> Exported:
    _require_parent(destination)
    is_empty = destination.is_dir() and not any(destination.iterdir())
    if os.path.lexists(destination) and not is_empty:
        if not force:
            raise _already_there(destination)
        if not (destination / "config.json").is_file() or not any(destination.glob("*.safetensors")):
            raise OptionError(f"{destination} is not an MLX folder: it is not replaced", "give another folder")
    beside, spare = _beside(destination), _beside(destination)
    ways: list[How] = []
    with writing_errors(destination):
        try:
            beside.mkdir()
            for record in artifact.manifest.files:
                ways.append(copy_file(artifact.folder / record.name, beside / record.name))
            sync_folder(beside)
            put_in_place(beside, destination, spare)
        finally:
            if os.path.lexists(beside):
                delete_tree(beside)
    return Exported(destination, ways[-1])


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}")


def _require_parent(target: Path) -> None:
    if not target.parent.is_dir():
        raise OptionError(f"there is no folder {target.parent}", "make it first, or give another path")


def _already_there(target: Path) -> OptionError:
    return OptionError(f"{target} is there already", "--force replaces it")
