"""Model references: what people write to name a model.

`org/name`, `org/name@revision`, a checkpoint folder, a `.gguf` file, an MLX folder, `toy-llama`, `toy-phi`;
each may be followed by `:FORMAT`, also a short one (`:q8_0`, `:mlx`). After a repository of `.gguf` files, the
format of one of them may follow, also one that localq can't make (`:gguf-q4_k_xl`). Reads the text and checks which
paths exist; opens nothing.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from localq.errors import ModelNotFoundError, ModelReferenceError
from localq.recipes import Recipe, exact_recipe, looks_like_recipe, parse_recipe

BUILT_IN_NAMES = ("toy-llama", "toy-phi")
"""Checkpoints that come with localq."""

_DEMO_FOLDER = Path(__file__).parent / "demo"
_REPO = re.compile(r"(?P<org>[A-Za-z0-9][\w.-]*)/(?P<name>[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_FOREIGN_FORM = re.compile(r"gguf-[a-z0-9][a-z0-9_.-]*")
_LOOKS_LIKE_PATH = (".", "/", "~")


def is_local(name: str) -> bool:
    """Whether a name is that of a converted checkpoint folder, as `localq ls` shows it, and not of a repository."""
    return name.startswith("local/")


@dataclass(frozen=True, slots=True)
class ForeignForm:
    """A format that localq can't make; a repository may have it as a `.gguf` file."""

    name: str
    """Such as `gguf-q4_k_xl`: `gguf-` and the type in the file's name."""
    format: str = "gguf"


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model, and a format of it where one is named."""

    kind: Literal["repo", "folder", "gguf", "built-in"]
    name: str
    """As shown to people: `org/name`, a built-in's name, or the name of a folder or file."""
    path: Path | None = None
    """Absolute path of a folder, a file or a built-in checkpoint; None for a repository."""
    revision: str | None = None
    """Branch, tag or commit of a repository; None for its default branch."""
    recipe: Recipe | ForeignForm | None = None

    def without_recipe(self) -> ModelReference:
        """The same model without a format."""
        return replace(self, recipe=None)

    def __str__(self) -> str:
        shown = self.name if self.kind in ("repo", "built-in") else str(self.path)
        revision = f"@{self.revision}" if self.revision else ""
        recipe = f":{self.recipe.name}" if self.recipe else ""
        return f"{shown}{revision}{recipe}"


def parse_reference(reference: str | os.PathLike[str]) -> ModelReference:
    """Read a reference; a `Path` names a folder or a `.gguf` file, never a repository or a built-in.

    An existing folder or file is taken before a repository of the same name, as in mlx_lm and transformers.
    Raises ModelReferenceError, ModelNotFoundError (a path where nothing is) or UnknownRecipeError.
    """
    text = os.fspath(reference)
    model, recipe = _split_recipe(text)
    if not model:
        raise ModelReferenceError(f"{text!r} names no model", "for example: toy-llama, org/name, ./folder")
    is_path = not isinstance(reference, str)
    if model in BUILT_IN_NAMES and not is_path:
        return ModelReference("built-in", model, _DEMO_FOLDER / model, recipe=recipe)
    path = _existing_path(model)
    if path is not None:
        return _path_reference(path, recipe)
    if is_path or model.startswith(_LOOKS_LIKE_PATH) or model.endswith(".gguf"):
        raise ModelNotFoundError(
            f"there is no folder or file {model}", "check the path; `localq ls` lists the converted models"
        )
    match = _REPO.fullmatch(model)
    if match is None:
        raise ModelReferenceError(
            f"{model!r} is neither a folder nor a repository name",
            f"write org/name, a path, or one of: {', '.join(BUILT_IN_NAMES)}",
            missing_model=model,
        )
    name = f"{match['org']}/{match['name']}"
    return ModelReference("repo", name, revision=match["revision"], recipe=recipe)


def named_model(name: str) -> ModelReference:
    """The model of a name that is given to it, `org/name` or a plain word, which becomes `local/word`.

    Raises ModelReferenceError.
    """
    match = _REPO.fullmatch(name if "/" in name else f"local/{name}")
    if match is None or "--" in match["org"]:
        raise ModelReferenceError(f"{name!r} can't be the name of a model", "give org/name, or a word: my-model")
    return ModelReference("repo", f"{match['org']}/{match['name']}", revision=match["revision"])


def _split_recipe(text: str) -> tuple[str, Recipe | ForeignForm | None]:
    head, colon, tail = text.rpartition(":")
    if not colon or _existing_path(text) is not None:
        return text, None
    form = tail.lower()
    if _FOREIGN_FORM.fullmatch(form) and exact_recipe(form) is None and _may_be_repository(head):
        return head, ForeignForm(form)
    if looks_like_recipe(tail) or "/" not in tail:
        return head, parse_recipe(tail)
    return text, None


def _may_be_repository(text: str) -> bool:
    return bool(_REPO.fullmatch(text)) and not is_local(text) and _existing_path(text) is None


def _existing_path(text: str) -> Path | None:
    """Absolute path of what `text` names. A link keeps its name: the hub's cache links to files named by a hash."""
    try:
        path = Path(text).expanduser()
        if path.is_dir():
            return path.resolve()
        return path.parent.resolve() / path.name if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name that is too long, the home of an unknown user, a zero byte
        return None


def _path_reference(path: Path, recipe: Recipe | ForeignForm | None) -> ModelReference:
    if path.is_dir():
        return ModelReference("folder", path.name, path, recipe=recipe)
    if path.suffix != ".gguf":
        raise ModelReferenceError(f"{path} is a file, but not a .gguf file", "give a folder or a .gguf file")
    if recipe is not None:
        raise ModelReferenceError(f"{path} is a GGUF file; it can't be opened as {recipe.name}", "leave out the format")
    return ModelReference("gguf", path.name, path)
