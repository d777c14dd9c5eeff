"""`localq import`: take an artifact that another program made into the models folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from localq.cli.arguments import Json, ModelsDir
from localq.cli.completion import complete_recipe
from localq.cli.output import emit, emit_json
from localq.tables import format_bytes

_Source = Annotated[Path, typer.Argument(metavar="SOURCE", help="A .gguf file or an MLX folder.")]
_Name = Annotated[
    str | None,
    typer.Option("--name", metavar="NAME", help="Name of the model: org/name, or a word (default: the file's name)."),
]
_As = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="FORMAT",
        help="The format, where the file does not state one that localq knows.",
        autocompletion=complete_recipe,
    ),
]
_Force = Annotated[bool, typer.Option("--force", help="Replace an artifact of the same name and format.")]


def import_(
    source: _Source,
    name: _Name = None,
    as_format: _As = None,
    force: _Force = False,
    models_dir: ModelsDir = None,
    json: Json = False,
) -> None:
    """Take a .gguf file or an MLX folder into the models folder.

    It is listed by `localq ls`, checked by `localq verify` and opened by its name. The file takes no room twice where
    the file system has reflinks or hard links. With a hard link, a later change of the
    original changes the artifact too.
    """
    from localq.importing import import_form

    imported = import_form(source, name=name, as_recipe=as_format, force=force, models_dir=models_dir)
    artifact, manifest = imported.artifact, imported.artifact.manifest
    if json:
        record = {"model": manifest.model, "recipe": manifest.recipe, "path": str(artifact.path)}
        emit_json({**record, "bytes": manifest.bytes, "bits_per_weight": manifest.bits_per_weight, "how": imported.how})
    else:
        emit(f"{artifact.name}, {format_bytes(manifest.bytes)}, by {imported.how}: {artifact.path}")
