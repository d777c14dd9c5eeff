"""Where artifacts are in the models folder: only names of folders, nothing read or written.

models/<org>--<name>/<recipe>/            a repository's default branch
models/<org>--<name>@<revision>/<recipe>/ a revision that was given by name; each slash in it becomes `--`
models/local--<name>/<recipe>/            a checkpoint folder; characters that a reference can't have become `-`
models/<built-in>/<recipe>/               a checkpoint that comes with localq
models/<any of these>/calibration/        what `localq calibrate` measured of it
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from localq.reference import ModelReference

MANIFEST_NAME = "localq.json"
"""A folder with this file is an artifact; readers ignore a folder without it."""

CALIBRATION_NAME = "calibration"
"""The folder beside a model's artifacts with what `localq calibrate` measured; readers of artifacts ignore it."""

MODELS_VARIABLE = "LOCALQ_MODELS"
"""The environment variable with the models folder."""


def models_folder(chosen: Path | str | None = None) -> Path:
    """`chosen`, else LOCALQ_MODELS, else `models/` of the checkout that localq runs from, else a cache folder.

    It need not exist: a conversion makes it.
    """
    chosen = chosen if chosen is not None else os.environ.get(MODELS_VARIABLE) or None
    if chosen is not None:
        return Path(chosen).expanduser().absolute()
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").is_file() and (checkout / "models" / "README.md").is_file():
        return checkout / "models"
    import platformdirs

    return Path(platformdirs.user_cache_dir("localq")) / "models"


def model_folder_names(reference: ModelReference) -> list[str]:
    """Names that a model's folder may have, in order of preference.

    Two checkpoint folders of the same name don't share artifacts: the second gets a name with a hash of its
    path. The manifest says which checkpoint a folder was made from.
    """
    if reference.kind == "built-in":
        return [reference.name]
    if reference.kind == "repo":
        return [str(reference.without_recipe()).replace("/", "--")]
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", reference.name).lstrip("_.-") or "checkpoint"
    path_hash = hashlib.sha256(os.fsencode(str(reference.path))).hexdigest()[:8]
    return [f"local--{name}", f"local--{name}-{path_hash}"]
