"""Find the checkpoint folder that a reference names; refuse artifacts, which doctor does not examine."""

from __future__ import annotations

import shlex
from pathlib import Path

from localq.checkpoint.source import CheckpointPlace, cached_place
from localq.errors import CheckpointError, LocalqError, ModelReferenceError
from localq.model import is_form
from localq.reference import ModelReference, is_local, parse_reference
from localq.store.manifest import read_artifact
from localq.store.store import Store


def find_place(reference: ModelReference, models_dir: Path | str | None = None) -> CheckpointPlace:
    """The folder to examine; does not use the network. `local/model` stands for the folder it was made from.

    Raises CheckpointError for an artifact, with what to do with it instead, ModelReferenceError for a reference with
    a recipe, and ModelNotFoundError where nothing is found.
    """
    if reference.recipe is not None:
        raise ModelReferenceError(
            f"{reference} names a format; doctor takes the checkpoint and --to {reference.recipe.name}"
        )
    if reference.kind == "gguf":
        raise CheckpointError(
            f"{reference.path} is a GGUF file, which runs as it is, and not a checkpoint",
            f"`localq generate {shlex.quote(str(reference.path))}` runs it",
        )
    if reference.kind == "folder":
        assert reference.path is not None
        _refuse_artifact(reference.path)
    if reference.kind == "repo" and is_local(reference.name):
        for artifact in Store(models_dir).forms(reference)[:1]:
            reference = parse_reference(Path(artifact.manifest.source))
    return cached_place(reference)


def _refuse_artifact(folder: Path) -> None:
    shown = shlex.quote(str(folder))
    artifact = read_artifact(folder)
    if artifact is not None:
        raise CheckpointError(
            f"{folder} is an artifact that localq made, {artifact.name}",
            f"`localq show {shown}` describes it; `localq doctor {shlex.quote(artifact.manifest.source)}` "
            "examines its checkpoint",
        )
    try:
        is_mlx = is_form(folder)
    except LocalqError:
        return  # a damaged file: examine the folder
    if is_mlx:
        raise CheckpointError(
            f"{folder} is an MLX folder, which runs as it is, and not a checkpoint",
            f"`localq generate {shown}` runs it; other formats are converted from the original checkpoint",
        )
