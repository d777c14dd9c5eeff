"""Where artifacts lie under `models/`: names of folders, nothing read or written.

models/<org>--<name>/<recipe>/            a repository's default branch
models/<org>--<name>@<revision>/<recipe>/ a revision that was asked for by name; `--` stands for its slashes
models/local--<name>/<recipe>/            a checkpoint folder; what a reference can't spell is left out
models/<built-in>/<recipe>/               a checkpoint that comes with localq
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from localq.reference import ModelReference

MANIFEST_NAME = "localq.json"
"""A folder with this file is an artifact; a folder without it does not exist for any reader."""


def models_folder(chosen: Path | str | None = None) -> Path:
    """`chosen`, else LOCALQ_MODELS, else `models/` of the checkout that localq runs from, else a cache folder."""
    if chosen is not None:
        return Path(chosen).expanduser().absolute()
    from_environment = os.environ.get("LOCALQ_MODELS")
    if from_environment:
        return Path(from_environment).expanduser().absolute()
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "models" / "README.md").is_file():
        return checkout / "models"
    import platformdirs

    return Path(platformdirs.user_cache_dir("localq")) / "models"


def model_folder_names(reference: ModelReference) -> list[str]:
    """Names that a model's folder may have, in order of preference.

    Two checkpoint folders of the same name don't share artifacts: the second gets a name with a hash of its
    path. The manifest tells whose a folder is.
    """
    if reference.kind == "built-in":
        return [reference.name]
    if reference.kind == "repo":
        return [str(reference.without_recipe()).replace("/", "--")]
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", reference.name).lstrip("_.-") or "checkpoint"
    path_hash = hashlib.sha256(os.fsencode(str(reference.path))).hexdigest()[:8]
    return [f"local--{name}", f"local--{name}-{path_hash}"]
