"""The names of models that are on this disk: for completion, and to suggest one where a name was misspelt.

Only names of folders are read, and no library is loaded for it: completion must not be felt.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from localq.errors import LocalqError
from localq.recipes import recipe_names_among
from localq.reference import BUILT_IN_NAMES
from localq.store.layout import models_folder
from localq.store.store import shown_name

_CHECKPOINT = "models--"
"""What the folder of a model in the Hugging Face cache begins with; `--` stands for the slash."""


def model_names(models_dir: Path | None = None) -> list[str]:
    """The toys, the converted models and the checkpoints of the Hugging Face cache."""
    converted = [_shown_name(folder) for folder in _folders(models_folder(models_dir))]
    checkpoints = [
        folder.name.removeprefix(_CHECKPOINT).replace("--", "/", 1)
        for folder in _folders(_hugging_face_cache())
        if folder.name.startswith(_CHECKPOINT)
    ]
    return list(dict.fromkeys([*BUILT_IN_NAMES, *converted, *checkpoints]))


def made_recipe_names(model: str, models_dir: Path | None = None) -> list[str]:
    """The formats that a model, named as `localq ls` shows it, was converted to."""
    models = [folder for folder in _folders(models_folder(models_dir)) if _shown_name(folder) == model]
    return recipe_names_among(folder.name for model in models for folder in _folders(model))


def hint_with_nearest(error: LocalqError, models_dir: Path | None = None) -> str:
    """The hint of an error; where there is no model of a name, the nearest names that there are come first."""
    nearest = _nearest(error.missing_model, model_names(models_dir)) if error.missing_model else []
    return f"did you mean {' or '.join(nearest)}? {error.hint}" if nearest else error.hint


def _nearest(wanted: str, names: Iterable[str]) -> list[str]:
    """At most three; a name may be written without its owner, `phi-4-mini` for `microsoft/Phi-4-mini`."""
    spellings: dict[str, list[str]] = {}
    for name in names:
        for spelling in {name.lower(), name.lower().rpartition("/")[2]}:
            spellings.setdefault(spelling, []).append(name)
    close = difflib.get_close_matches(wanted.lower(), spellings, 3, 0.65)
    found = [name for spelling in close for name in spellings[spelling] if name != wanted]
    return list(dict.fromkeys(found))[:3]


def _shown_name(model_folder: Path) -> str:
    return shown_name(model_folder / "any recipe")


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(child for child in parent.iterdir() if child.is_dir() and not child.name.startswith("."))
    except OSError:  # it does not exist
        return []


def _hugging_face_cache() -> Path:
    """As huggingface_hub finds it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expandvars(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))).expanduser()
