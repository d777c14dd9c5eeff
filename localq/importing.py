"""The verb: take a `.gguf` file or an MLX folder into the models folder, after it was opened once."""

from __future__ import annotations

import os
from pathlib import Path

from localq.model import open_form, open_gguf_file
from localq.options import LoadOptions
from localq.reference import parse_reference
from localq.store.foreign import examine
from localq.store.importing import Imported, import_artifact
from localq.store.manifest import Artifact
from localq.store.store import Store


def import_form(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    as_recipe: str | None = None,
    force: bool = False,
    models_dir: Path | str | None = None,
) -> Imported:
    """Import an artifact that another program made: `localq ls` lists it, and its name opens it.

    `name` is `org/name` or a word; without one, the file's or folder's own. `as_recipe` names the format where the file
    does not state one that localq has. Raises errors of the tree in `localq.errors`; then nothing is left.
    """
    found = examine(parse_reference(Path(source)), as_recipe)
    return import_artifact(Store(models_dir), found, _check, name=name, force=force)


def _check(artifact: Artifact) -> None:
    """Open it as every file of another program is opened, with all the checks of that."""
    is_file = bool(artifact.manifest.main_file)
    options = LoadOptions(context_length=_CONTEXT_TOKENS)
    with open_gguf_file(artifact.path, options) if is_file else open_form(artifact.folder, options):
        pass


_CONTEXT_TOKENS = 64
