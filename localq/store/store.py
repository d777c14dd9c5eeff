"""The models folder: find, list, publish and remove artifacts.

Publishing is atomic: an artifact is written in a folder beside its own, synced, gets its manifest last, and is
renamed. A lock file lets only one process write an artifact at a time; readers need none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from localq.disk import ELSEWHERE_HINT, disk_errors, replacing
from localq.errors import ModelNotFoundError, StoreError
from localq.recipes import Recipe, recipe_names_among
from localq.reference import ModelReference
from localq.store.layout import CALIBRATION_NAME, MANIFEST_NAME, MODELS_VARIABLE, model_folder_names, models_folder
from localq.store.manifest import Artifact, Manifest, read_artifact, read_manifest

if TYPE_CHECKING:
    from filelock import BaseFileLock

_SPARE_BYTES = 32 << 20  # for tokenizer, manifest and the file system
_LOCKS = ".locks"


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
        artifact = read_artifact(self.place(reference, recipe))
        return artifact if artifact is not None and _is_of(artifact.manifest, reference) else None

    def forms(self, reference: ModelReference) -> list[Artifact]:
        """Every artifact of a model."""
        artifacts = self._artifacts_in(self._model_folder(reference))
        return [artifact for artifact in artifacts if _is_of(artifact.manifest, reference)]

    def artifacts(self) -> list[Artifact]:
        """Every artifact, sorted by model and recipe; without the damaged ones."""
        return [artifact for model in self._models() for artifact in self._artifacts_in(model)]

    def damaged(self) -> list[Path]:
        """Folders whose manifest can't be read or does not fit the files."""
        return [folder for model in self._models() for folder in _form_folders(model) if _is_damaged(folder)]

    def require(self, reference: ModelReference) -> list[Artifact]:
        """The artifacts that a reference means: one with a recipe, all without. ModelNotFoundError where none exists.

        The reference may also be the path of an artifact in the store, a folder or its `.gguf` file.
        """
        folder = self._form_at(reference)
        candidates = self.forms(reference) if folder is None else [read_artifact(folder)]
        forms = [form for form in candidates if form is not None and reference.recipe in (None, form.recipe)]
        if not forms:
            raise self._nothing_there(reference)
        return forms

    def require_folders(self, reference: ModelReference) -> list[Path]:
        """As `require`, but returns the folders that `localq rm` deletes.

        Those of damaged artifacts are included, and without a recipe the model's calibration.
        """
        named = self._form_at(reference)
        folders = _form_folders(self._model_folder(reference)) if named is None else [named]
        wanted = [folder for folder in folders if reference.recipe is None or folder.name == reference.recipe.name]
        own = [folder for folder in wanted if folder == named or _is_damaged(folder) or _is_form_of(folder, reference)]
        calibration = self._model_folder(reference) / CALIBRATION_NAME
        if named is None and reference.recipe is None and calibration.is_dir():
            own.append(calibration)
        if not own:
            raise self._nothing_there(reference)
        return own

    def remove(self, folder: Path) -> None:
        """Delete the folder of an artifact, and its model's folder when that is empty then."""
        removed = folder.with_name(f".{folder.name}.removed-{os.getpid()}")
        with disk_errors(self.folder):
            folder.rename(removed)  # no reader finds it from now on, even if deleting takes long
            shutil.rmtree(removed)
            remove_if_empty(folder.parent)

    def check_room(self, needed_bytes: int) -> None:
        """Raise StoreError unless the disk has room for `needed_bytes` more; creates the models folder."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        needed_bytes += _SPARE_BYTES
        if free < needed_bytes:
            raise StoreError(
                f"{self.folder} has {free / 1e6:,.0f} MB free; {needed_bytes / 1e6:,.0f} MB are needed",
                f"remove something (`localq ls`, `localq rm`) or {ELSEWHERE_HINT}",
            )

    @contextmanager
    def writing(self, reference: ModelReference, recipe: Recipe, on_wait: Callable[[], None]) -> Iterator[Path]:
        """Hold the lock of one artifact; yields an empty folder to write it in, deleted at the end unless published.

        `on_wait` is called once when another process is writing the same artifact.
        """
        with disk_errors(self.folder):
            lock = self._acquire(reference, recipe, on_wait)
        try:
            model = self._model_folder(reference)
            staging = model / f".{recipe.name}.partial"
            with disk_errors(self.folder):
                for leftover in model.glob(f".{recipe.name}.*"):  # of a killed process: we hold its lock now
                    shutil.rmtree(leftover, ignore_errors=True)
                staging.mkdir(parents=True)
            try:
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
                remove_if_empty(model)
        finally:
            lock.release()

    def is_being_written(self, model: Path, recipe_name: str) -> bool:
        """Whether a process holds the lock of an artifact in a model's folder."""
        import filelock

        lock = self._lock(model, recipe_name)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return True
        lock.release()
        return False

    def _lock(self, model: Path, recipe_name: str) -> BaseFileLock:
        import filelock

        locks = self.folder / _LOCKS
        locks.mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(locks / f"{model.name}.{recipe_name}.lock")

    def _acquire(self, reference: ModelReference, recipe: Recipe, on_wait: Callable[[], None]) -> BaseFileLock:
        import filelock

        while True:
            model = self._model_folder(reference)
            lock = self._lock(model, recipe.name)
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                on_wait()
                lock.acquire()
            if self._model_folder(reference) == model:
                return lock
            lock.release()  # while we waited, another checkpoint of the same name got the folder

    def place(self, reference: ModelReference, recipe: Recipe) -> Path:
        """The folder where an artifact is, or would be."""
        return self._model_folder(reference) / recipe.name

    def publish(self, staging: Path, manifest: Manifest) -> Artifact:
        """Turn a finished staging folder into the artifact; replaces an earlier one. Its files are synced already."""
        target = staging.parent / manifest.recipe
        with disk_errors(self.folder):
            with replacing(staging / MANIFEST_NAME) as stream:
                stream.write(manifest.to_json().encode())
            _sync_folder(staging)
            if target.exists():
                replaced = staging.with_name(f".{manifest.recipe}.replaced")
                target.rename(replaced)
                staging.rename(target)
                shutil.rmtree(replaced, ignore_errors=True)
            else:
                staging.rename(target)
            _sync_folder(target.parent)
        return Artifact(target, manifest)

    def _model_folder(self, reference: ModelReference) -> Path:
        """The folder with artifacts of this model, else the first name without artifacts of another one."""
        candidates = [self.folder / name for name in model_folder_names(reference)]
        owners = [
            [manifest for folder in _form_folders(model) if (manifest := _manifest(folder))] for model in candidates
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
        if folder.parent.parent != self.folder.resolve() or folder not in _form_folders(folder.parent):
            return None
        if _is_damaged(folder):
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

    def _models(self) -> list[Path]:
        children = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(child for child in children if child.is_dir() and not child.name.startswith("."))

    def _artifacts_in(self, model: Path) -> list[Artifact]:
        artifacts = []
        for folder in _form_folders(model):
            with contextlib.suppress(StoreError):
                artifacts.append(read_artifact(folder))
        return [artifact for artifact in artifacts if artifact is not None]


def source_of(reference: ModelReference) -> str:
    """`Manifest.source`: a repository, an absolute folder, or a built-in's name."""
    return str(reference.path) if reference.kind == "folder" else reference.name


def _form_folders(model: Path) -> list[Path]:
    children = model.iterdir() if model.is_dir() else ()
    return [model / name for name in recipe_names_among(child.name for child in children if child.is_dir())]


def _is_damaged(folder: Path) -> bool:
    try:
        read_artifact(folder)
    except StoreError:
        return True
    return False


def _manifest(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except StoreError:
        return None


def _is_form_of(folder: Path, reference: ModelReference) -> bool:
    manifest = _manifest(folder)
    return manifest is not None and _is_of(manifest, reference)


def _is_of(manifest: Manifest, reference: ModelReference) -> bool:
    """Whether it is of this model. Only checkpoint folders can share a name; other names are unique."""
    return reference.path is None or reference.kind == "built-in" or manifest.source == source_of(reference)


def shown_name(artifact_folder: Path) -> str:
    """The name of a model in lists; as a reference it finds the same folder again."""
    name, at, revision = artifact_folder.parent.name.replace("--", "/", 1).partition("@")
    return name + at + revision.replace("--", "/")


def remove_if_empty(folder: Path) -> None:
    """Delete a model's folder if nothing is in it."""
    with contextlib.suppress(OSError):  # it is not empty, or another process is writing there
        folder.rmdir()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
