"""The models folder: find, list, publish and remove artifacts.

Publishing is atomic: an artifact is written in a folder beside its own, synced, gets its manifest last, and is
renamed. A lock file lets only one process write an artifact at a time; readers need none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from localq.disk import ELSEWHERE_HINT, delete_tree, disk_errors, make_folder, put_in_place, replacing, sync_folder
from localq.errors import ModelNotFoundError, StoreError
from localq.recipes import Recipe, recipe_names_among
from localq.reference import ModelReference
from localq.store.layout import CALIBRATION_NAME, MANIFEST_NAME, MODELS_VARIABLE, model_folder_names, models_folder
from localq.store.leftovers import (
    Kind,
    abandoned,
    children,
    clear,
    leftover_path,
    leftovers_in,
    remove_if_empty,
)
from localq.store.locks import Lock, free_lock, held_lock
from localq.store.manifest import Artifact, Manifest, read_artifact, read_manifest

_SPARE_BYTES = 32 << 20  # for tokenizer, manifest and the file system
_LOCKS = ".locks"
_MOST_TRIES = 100


class Store:
    """Artifacts under one folder."""

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = models_folder(folder)

    @classmethod
    def existing(cls, folder: Path | str | None = None) -> Store:
        """For commands that make nothing: raises StoreError where a folder was chosen that does not exist.

        Both `folder` and LOCALQ_MODELS are a choice. The default folder may be missing: it is empty then.
        """
        store = cls(folder)
        is_chosen = folder is not None or os.environ.get(MODELS_VARIABLE)
        if is_chosen and not store.folder.is_dir():
            origin = "--models-dir" if folder is not None else MODELS_VARIABLE
            raise StoreError(f"there is no folder {store.folder}", f"check {origin}; `localq convert` makes the folder")
        return store

    def find(self, reference: ModelReference, recipe: Recipe) -> Artifact | None:
        """The artifact of a model and recipe; None where it was not made. Raises StoreError if it is damaged."""
        artifact = read_form(self.place(reference, recipe))
        return artifact if artifact is not None and _is_of(artifact.manifest, reference) else None

    def forms(self, reference: ModelReference) -> list[Artifact]:
        """Every artifact of a model."""
        artifacts = self._artifacts_in(self._model_folder(reference))
        return [artifact for artifact in artifacts if _is_of(artifact.manifest, reference)]

    def artifacts(self) -> list[Artifact]:
        """Every artifact, sorted by model and recipe; without the damaged ones."""
        return [artifact for model in self.models() for artifact in self._artifacts_in(model)]

    def damaged(self) -> list[Path]:
        """Folders with a format's name whose manifest is lost, can't be read, or does not fit the files."""
        return [folder for model in self.models() for folder in form_folders(model) if problem_of(folder)]

    def require(self, reference: ModelReference) -> list[Artifact]:
        """The artifacts that a reference means: one with a recipe, all without. ModelNotFoundError where none exists.

        The reference may also be the path of an artifact in the store, a folder or its `.gguf` file.
        """
        folder = self._form_at(reference)
        candidates = self.forms(reference) if folder is None else [read_form(folder)]
        forms = [form for form in candidates if form is not None and reference.recipe in (None, form.recipe)]
        if not forms:
            raise self._nothing_there(reference)
        return forms

    def require_folders(self, reference: ModelReference) -> list[Path]:
        """As `require`, but returns the folders that `localq rm` deletes.

        Those of damaged artifacts are included, and without a recipe the model's calibration.
        """
        named = self._form_at(reference)
        folders = form_folders(self._model_folder(reference)) if named is None else [named]
        wanted = [folder for folder in folders if reference.recipe is None or folder.name == reference.recipe.name]
        own = [folder for folder in wanted if folder == named or _may_be_of(folder, reference)]
        calibration = self._model_folder(reference) / CALIBRATION_NAME
        if named is None and reference.recipe is None and calibration.is_dir():
            own.append(calibration)
        if not own:
            raise self._nothing_there(reference)
        return own

    def remove(self, folder: Path) -> bool:
        """Delete the folder of an artifact, and its model's folder when that is empty then; False where it is gone."""
        model, recipe = folder.parent, folder.name
        with disk_errors(self.folder), free_lock(self._lock_file(model, recipe)) as lock:
            if lock is not None:  # else another process is making it again, and clears up itself
                for leftover in abandoned(leftovers_in(model).get(recipe, []), lock):
                    delete_tree(leftover.path)
            removed = leftover_path(model, recipe, "removed")
            try:
                folder.rename(removed)  # no reader finds it from now on, even if deleting takes long
            except FileNotFoundError:
                return False
            delete_tree(removed)
            remove_if_empty(model)
        return True

    def check_room(self, needed_bytes: int) -> None:
        """Raise StoreError unless the disk has room for `needed_bytes` more; creates the models folder."""
        with disk_errors(self.folder):
            make_folder(self.folder)
        free = shutil.disk_usage(self.folder).free
        needed_bytes += _SPARE_BYTES
        if free < needed_bytes:
            raise StoreError(
                f"{self.folder} has {free / 1e6:,.0f} MB free; {needed_bytes / 1e6:,.0f} MB are needed",
                f"remove something (`localq ls`, `localq rm`) or {ELSEWHERE_HINT}",
            )

    @contextmanager
    def writing(
        self, reference: ModelReference, recipe: Recipe, on_wait: Callable[[], None], kind: Kind = "partial"
    ) -> Iterator[Path]:
        """Hold the lock of one artifact; yields an empty folder to write it in, deleted at the end unless published.

        `on_wait` is called once when another process is writing the same artifact. A `kind` of "temporary" is for what
        is never published.
        """
        with ExitStack() as stack:
            with disk_errors(self.folder):
                model, lock = self._acquire(stack, reference, recipe, on_wait)
                for leftover in abandoned(leftovers_in(model).get(recipe.name, []), lock):
                    clear(leftover)
                staging = leftover_path(model, recipe.name, kind)
                stack.callback(remove_if_empty, model)
                _make_staging(staging)
            try:
                yield staging
            finally:
                if os.path.lexists(staging):  # else it was published
                    with contextlib.suppress(OSError):
                        delete_tree(staging)

    def lock_if_free(self, model: Path, recipe_name: str) -> AbstractContextManager[Lock | None]:
        """Hold the lock of an artifact in a model's folder; None where another process does. Raises OSError."""
        return free_lock(self._lock_file(model, recipe_name))

    def _lock_file(self, model: Path, recipe_name: str) -> Path:
        return self.folder / _LOCKS / f"{model.name}.{recipe_name}.lock"

    def _acquire(
        self, stack: ExitStack, reference: ModelReference, recipe: Recipe, on_wait: Callable[[], None]
    ) -> tuple[Path, Lock]:
        make_folder(self.folder)
        while True:
            model = self._model_folder(reference)
            with ExitStack() as attempt:
                lock = attempt.enter_context(held_lock(self._lock_file(model, recipe.name), on_wait))
                if self._model_folder(reference) == model:
                    stack.push(attempt.pop_all())
                    return model, lock
            # While we waited, another checkpoint of the same name got the folder.

    def place(self, reference: ModelReference, recipe: Recipe) -> Path:
        """The folder where an artifact is, or would be."""
        return self._model_folder(reference) / recipe.name

    def publish(self, staging: Path, manifest: Manifest) -> Artifact:
        """Turn a finished staging folder into the artifact; an earlier one is at `staging` then, and deleted.

        Its files are synced already.
        """
        model, target = staging.parent, staging.with_name(manifest.recipe)
        with disk_errors(self.folder):
            with replacing(staging / MANIFEST_NAME) as stream:
                stream.write(manifest.to_json().encode())
            sync_folder(staging)
            put_in_place(staging, target, leftover_path(model, manifest.recipe, "replaced"))
        return Artifact(target, manifest)

    def _model_folder(self, reference: ModelReference) -> Path:
        """The folder with artifacts of this model, else the first name without artifacts of another one."""
        candidates = [self.folder / name for name in model_folder_names(reference)]
        owners = [
            [manifest for folder in form_folders(model) if (manifest := _manifest(folder))] for model in candidates
        ]
        for model, manifests in zip(candidates, owners, strict=True):
            if any(_is_of(manifest, reference) for manifest in manifests):
                return model
        return next(
            (model for model, manifests in zip(candidates, owners, strict=True) if not manifests), candidates[-1]
        )

    def _form_at(self, reference: ModelReference) -> Path | None:
        """The folder of the artifact whose path the reference is, as `localq convert` prints it; else None."""
        if reference.path is None:
            return None
        folder = reference.path.parent if reference.kind == "gguf" else reference.path
        if folder.parent.parent != self.folder.resolve() or folder not in form_folders(folder.parent):
            return None
        if problem_of(folder):
            return folder
        manifest = _manifest(folder)
        is_whole = reference.kind == "folder" or (manifest and manifest.main_file == reference.path.name)
        return folder if manifest and is_whole else None

    def _nothing_there(self, reference: ModelReference) -> ModelNotFoundError:
        return ModelNotFoundError(
            f"there is no {reference} in {self.folder}",
            "`localq ls` lists what is there; `localq convert` makes it",
            missing_model=str(reference.without_recipe()),
        )

    def models(self) -> list[Path]:
        """The folder of each model."""
        return [child for child in children(self.folder) if child.is_dir() and not child.name.startswith(".")]

    def _artifacts_in(self, model: Path) -> list[Artifact]:
        artifacts = []
        for folder in form_folders(model):
            with contextlib.suppress(StoreError):
                artifacts.append(read_form(folder))
        return [artifact for artifact in artifacts if artifact is not None]


def source_of(reference: ModelReference) -> str:
    """`Manifest.source`: a repository, an absolute folder, or a built-in's name."""
    return str(reference.path) if reference.kind == "folder" else reference.name


def form_folders(model: Path) -> list[Path]:
    """Everything in a model's folder that is named as a format, in the order of the recipes."""
    return [model / name for name in recipe_names_among(child.name for child in children(model) if child.is_dir())]


def problem_of(folder: Path) -> str | None:
    """What is wrong with a folder that has a format's name, as far as its manifest and the sizes of files tell.

    None for an artifact, and for an empty folder.
    """
    try:
        artifact = read_form(folder)
    except StoreError as error:
        return error.message
    return f"{folder} has lost its {MANIFEST_NAME}" if artifact is None and has_lost_manifest(folder) else None


def has_lost_manifest(folder: Path) -> bool:
    """Whether a folder holds something, and no manifest."""
    return bool(children(folder)) and not os.path.lexists(folder / MANIFEST_NAME)


def read_form(folder: Path) -> Artifact | None:
    """As `read_artifact`, of a folder in the models folder, whose names must be those in the manifest."""
    artifact = read_artifact(folder)
    if artifact is not None and artifact.name != f"{shown_name(folder)}:{folder.name}":
        raise StoreError(
            f"{folder} holds another artifact: {artifact.name}", "rename the folder back, or delete it with `localq rm`"
        )
    return artifact


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except StoreError:
        return None


def _may_be_of(folder: Path, reference: ModelReference) -> bool:
    """Whether a folder is an artifact of this model, or a damaged one, which does not say whose it is."""
    try:
        artifact = read_form(folder)
    except StoreError:
        return True
    return has_lost_manifest(folder) if artifact is None else _is_of(artifact.manifest, reference)


def _is_of(manifest: Manifest, reference: ModelReference) -> bool:
    """Whether it is of this model. Only checkpoint folders can share a name; other names are unique."""
    return reference.path is None or reference.kind == "built-in" or manifest.source == source_of(reference)


def shown_name(artifact_folder: Path) -> str:
    """The name of a model in lists; as a reference it finds the same folder again."""
    name, at, revision = artifact_folder.parent.name.replace("--", "/", 1).partition("@")
    return name + at + revision.replace("--", "/")


def _make_staging(staging: Path) -> None:
    """Make the folder and its model's folder, which another process may delete while it is empty."""
    for tries_left in reversed(range(_MOST_TRIES)):
        try:
            make_folder(staging.parent)
            staging.mkdir()
        except FileNotFoundError:
            if not tries_left:
                raise
        else:
            return
