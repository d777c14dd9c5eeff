"""From a reference to an open checkpoint: a built-in, a folder, or a repository that is pulled when needed.

A repository may also have artifacts that others made, `.gguf` files or an MLX folder: these are used as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localq.checkpoint.folder import Checkpoint, open_checkpoint, read_config
from localq.checkpoint.hub import DownloadProgress, find_form, find_snapshot, pull, pull_form
from localq.errors import CheckpointError, ModelNotFoundError, ModelReferenceError, UnsupportedModelError
from localq.json_files import read_optional_json
from localq.recipes import GgufRecipe, Recipe, parse_recipe
from localq.reference import ForeignForm, ModelReference, is_local


def resolve_checkpoint(reference: ModelReference, on_download: DownloadProgress | None = None) -> Checkpoint:
    """Open the checkpoint that a reference names; pulls a repository that is not in the cache.

    Raises CheckpointError, UnsupportedModelError, ModelNotFoundError or DownloadError.
    """
    return _place(reference, lambda: fetch_snapshot(reference, on_download)).open()


def cached_checkpoint(reference: ModelReference) -> Checkpoint:
    """As `resolve_checkpoint`, without the network: raises ModelNotFoundError for what is not in the cache."""
    return cached_place(reference).open()


@dataclass(frozen=True, slots=True)
class CheckpointPlace:
    """Where a checkpoint is, before anything of it is read."""

    folder: Path
    name: str
    revision: str | None
    """The hub's commit; None for a folder."""

    def open(self) -> Checkpoint:
        """Read and check it."""
        refuse_mlx_form(self.folder, self.name)
        return open_checkpoint(self.folder, self.name, self.revision)


def cached_place(reference: ModelReference) -> CheckpointPlace:
    """The folder that a reference names, found without the network. Raises as `cached_checkpoint`."""
    return _place(reference, lambda: _cached_snapshot(reference))


def _place(reference: ModelReference, snapshot_of_repository: Callable[[], Path]) -> CheckpointPlace:
    if reference.kind == "gguf":
        raise CheckpointError(
            f"{reference.path} is a converted file, not a checkpoint",
            "give the checkpoint in Hugging Face format from which it was made",
        )
    if reference.kind == "repo":
        _refuse_local(reference.name)
        snapshot = snapshot_of_repository()
        return CheckpointPlace(snapshot, reference.name, snapshot.name)
    assert reference.path is not None
    return CheckpointPlace(reference.path, reference.name, None)


def fetch_snapshot(reference: ModelReference, on_download: DownloadProgress | None = None) -> Path:
    """The folder of a repository's snapshot: from the cache where it is complete, else pulled."""
    return find_snapshot(reference.name, reference.revision) or pull_checkpoint(reference, on_download)


def pull_checkpoint(reference: ModelReference, on_download: DownloadProgress | None = None) -> Path:
    """Bring a repository into the cache, or up to date.

    Raises UnsupportedModelError or CheckpointError for one that localq can't convert, as soon as its config.json is
    there and before the weights are downloaded, ModelNotFoundError for a name such as `local/model`, else as
    `hub.pull` does.
    """
    _refuse_local(reference.name)

    def check(folder: Path, _is_mlx: bool) -> None:
        refuse_mlx_form(folder, reference.name)
        read_config(folder)

    return pull(reference.name, reference.revision, on_download, check)


def fetch_form(reference: ModelReference, on_download: DownloadProgress | None = None) -> Path | None:
    """The `.gguf` file that a repository has in the format named: from the cache where it is complete, else pulled.

    None where localq makes the format from the repository's checkpoint instead. Of the formats that localq makes only
    with a calibration, a file that lies beside the checkpoint is taken too. Raises UnknownRecipeError where there
    is neither, else as `hub.pull_form` does.
    """
    form, repo, revision = reference.recipe, reference.name, reference.revision
    if form is None or form.format != "gguf" or is_local(repo):
        return None
    if not _is_taken_beside_checkpoint(form) and find_snapshot(repo, revision):
        return None
    return find_form(repo, form.name, revision) or _pulled_form(reference, on_download)


def pull_ready_form(
    reference: ModelReference, on_download: DownloadProgress | None = None, verify: bool = False
) -> Path:
    """As `fetch_form`, brought up to date, with `verify` read again.

    Raises ModelReferenceError for a format that is made from the checkpoint.
    """
    _refuse_local(reference.name)
    form = reference.recipe
    assert form is not None
    path = _pulled_form(reference, on_download, verify) if form.format == "gguf" else None
    if path is None:
        raise ModelReferenceError(
            f"{reference} is not in the repository: localq makes {form.name} from the checkpoint",
            f"localq convert {reference.without_recipe()} --to {form.name}",
        )
    return path


def _pulled_form(reference: ModelReference, on_download: DownloadProgress | None, verify: bool = False) -> Path | None:
    form = reference.recipe
    assert form is not None
    beside = _is_taken_beside_checkpoint(form)
    path = pull_form(reference.name, form.name, reference.revision, on_download, beside, verify)
    if path is None and isinstance(form, ForeignForm):
        parse_recipe(form.name)  # which raises
    return path


def _is_taken_beside_checkpoint(form: Recipe | ForeignForm) -> bool:
    return isinstance(form, ForeignForm) or (isinstance(form, GgufRecipe) and form.needs_importance)


def fetch_folder(
    reference: ModelReference,
    on_download: DownloadProgress | None = None,
    before_weights: Callable[[Path], object] | None = None,
) -> Path:
    """The folder of a repository that is a checkpoint, or an MLX folder of any model that mlx_lm may run.

    From the cache where it is complete, else pulled; `before_weights` may end that. Raises as `pull_checkpoint`.
    """
    _refuse_local(reference.name)
    repo, revision = reference.name, reference.revision
    found = find_snapshot(repo, revision)
    return found or pull(repo, revision, on_download, _check_runs, before_weights=before_weights)


def refuse_mlx_form(folder: Path, name: str) -> None:
    """Raise UnsupportedModelError for a folder that MLX has quantized: an artifact, not a checkpoint."""
    if is_quantized_by_mlx(folder):
        raise UnsupportedModelError(
            f"{name} is an MLX artifact, already quantized, and not a checkpoint",
            f"`localq generate {name}` runs it as it is; for another format, convert the original checkpoint",
        )


def is_quantized_by_mlx(folder: Path) -> bool:
    """Whether MLX quantized a folder: mlx_lm writes this key into config.json, transformers does not."""
    return "quantization" in read_optional_json(folder / "config.json")


def _check_runs(folder: Path, is_mlx: bool) -> None:
    if not is_mlx and not is_quantized_by_mlx(folder):
        read_config(folder)


def _cached_snapshot(reference: ModelReference) -> Path:
    cached = find_snapshot(reference.name, reference.revision)
    if cached is None:
        raise ModelNotFoundError(
            f"{reference} is not complete in the Hugging Face cache", f"`localq pull {reference}` downloads it"
        )
    return cached


def _refuse_local(repo: str) -> None:
    """`local/name` is the store's name for a checkpoint folder: it names artifacts that were made, not a repository."""
    if is_local(repo):
        raise ModelNotFoundError(
            f"{repo} is not a repository: it names a converted checkpoint folder, and no artifact of it is here",
            "`localq ls` lists the artifacts; to convert the folder, give its path",
        )
