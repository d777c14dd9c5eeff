"""`localq export`: give an artifact's files to other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localq.cli.arguments import Json, ModelsDir, Reference
from localq.cli.output import emit, emit_json
from localq.errors import OptionError
from localq.tables import format_bytes

_Destination = Annotated[
    Path, typer.Argument(metavar="DEST", help="A .gguf file or a folder to put it in; a new folder for MLX.")
]
_Force = Annotated[bool, typer.Option("--force", help="Replace the file, or the MLX folder, that is there.")]


def export(
    ref: Reference, dest: _Destination, force: _Force = False, models_dir: ModelsDir = None, json: Json = False
) -> None:
    """Write a plain .gguf file or MLX folder for other programs.

    For llama.cpp, ollama, LM Studio and mlx_lm. It is a copy, which takes no room twice where the file system has
    reflinks: what is done to it does not change the artifact.
    """
    from localq.reference import parse_reference
    from localq.store.exporting import export_artifact
    from localq.store.store import Store

    artifacts = Store.existing(models_dir).require(parse_reference(ref))
    if len(artifacts) > 1:
        names = ", ".join(artifact.name for artifact in artifacts)
        raise OptionError(f"{ref} has {len(artifacts)} formats", f"name one of them: {names}")
    artifact = artifacts[0]
    exported = export_artifact(artifact, dest, force=force)
    manifest = artifact.manifest
    if json:
        record = {"model": manifest.model, "recipe": manifest.recipe, "path": str(exported.path)}
        emit_json({**record, "bytes": manifest.bytes, "how": exported.how})
    else:
        emit(f"{artifact.name}, {format_bytes(manifest.bytes)}, by {exported.how}: {exported.path}")
