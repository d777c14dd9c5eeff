"""Where the checkpoint lies that a reference names, and what else it may be: a form needs no examination."""

from __future__ import annotations

import shlex
from pathlib import Path

from localq.checkpoint.source import CheckpointPlace, cached_place
from localq.errors import CheckpointError, LocalqError, ModelReferenceError
from localq.model import is_form
from localq.reference import ModelReference, is_local, parse_reference
from localq.store.manifest import read_artifact
from localq.store.store import Store


def find_place(reference: ModelReference) -> CheckpointPlace:
    """The folder to examine; asks no network. A name such as `local/model` stands for the folder it was made from.

    Raises CheckpointError that says what to do with a form instead, ModelReferenceError for a reference with a
    recipe, and ModelNotFoundError for what is not there.
    """
    if reference.recipe is not None:
        raise ModelReferenceError(
            f"{reference} names a form; doctor takes the checkpoint and --to {reference.recipe.name}"
        )
    if reference.kind == "gguf":
        raise CheckpointError(
            f"{reference.path} is a GGUF file: a form that runs as it is, no checkpoint",
            f"`localq generate {shlex.quote(str(reference.path))}` runs it",
        )
    if reference.kind == "folder":
        assert reference.path is not None
        _refuse_form(reference.path)
    if reference.kind == "repo" and is_local(reference.name):
        for artifact in Store().forms(reference)[:1]:
            reference = parse_reference(Path(artifact.manifest.source))
    return cached_place(reference)


def _refuse_form(folder: Path) -> None:
    shown = shlex.quote(str(folder))
    artifact = read_artifact(folder)
    if artifact is not None:
        raise CheckpointError(
            f"{folder} is a form that localq made, {artifact.name}",
            f"`localq show {shown}` tells of it; `localq doctor {shlex.quote(artifact.manifest.source)}` "
            "examines its checkpoint",
        )
    try:
        is_mlx = is_form(folder)
    except LocalqError:
        return  # a damaged file says nothing of MLX: examine it
    if is_mlx:
        raise CheckpointError(
            f"{folder} is an MLX folder: a form that runs as it is, no checkpoint",
            f"`localq generate {shown}` runs it; other forms are converted from the original checkpoint",
        )
