"""The verbs of Python that need no model: `ls` and `pull`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from localq.errors import ModelReferenceError
from localq.keywords import named_options
from localq.reference import parse_reference
from localq.store.manifest import Artifact
from localq.store.store import Store
from localq.tables import format_bytes, format_html_table, format_table

if TYPE_CHECKING:
    from localq.conversion.convert import ConversionListener

_COLUMNS = ["model", "made (UTC)", "last use (UTC)", "size", "bits/weight"]


class ArtifactList(list[Artifact]):
    """Artifacts, shown as a table."""

    def __repr__(self) -> str:
        return format_table(_COLUMNS, self._rows()) if self else "[]"

    def _repr_html_(self) -> str:
        return format_html_table(_COLUMNS, self._rows())

    def _rows(self) -> list[list[str]]:
        return [
            [
                artifact.name,
                artifact.manifest.created.removesuffix("+00:00").replace("T", " "),
                f"{artifact.last_used:%Y-%m-%d %H:%M}",
                format_bytes(artifact.manifest.bytes),
                f"{artifact.manifest.bits_per_weight:.2f}",
            ]
            for artifact in self
        ]


@named_options()
def ls(models_dir: Path | str | None = None) -> ArtifactList:
    """What was converted, sorted by model and format: a list of Artifact, which a notebook shows as a table.

    `models_dir` is the folder of converted models. Damaged artifacts are left out; `localq ls` in a terminal names
    them. Raises StoreError where a folder was chosen that does not exist.
    """
    return ArtifactList(Store.existing(models_dir).artifacts())


@named_options()
def pull(
    reference: str | os.PathLike[str], *, verify: bool = False, listener: ConversionListener | None = None
) -> Path:
    """Download a checkpoint or an MLX folder into the Hugging Face cache, or one `.gguf` file; return its path.

        localq.pull("microsoft/Phi-4-mini-instruct")
        localq.pull("org/name-GGUF:gguf-q4_k_m")

    What is there already is brought up to date. Files must have the hashes that the hub states: those that are there
    are read for that once, and again with `verify`; a damaged one is fetched again. `listener` gets the progress;
    without one, IPython and Jupyter show a bar. Raises ModelReferenceError, ModelNotFoundError, DownloadError, or other
    errors of the tree in `localq.errors`.
    """
    from localq.checkpoint import hub
    from localq.checkpoint.source import pull_ready_form
    from localq.conversion.convert import listener_or_default

    parsed = parse_reference(reference)
    if parsed.kind != "repo":
        hint = "pull needs a repository: org/name"
        raise ModelReferenceError(f"{reference} is on this machine already: {parsed.path}", hint)
    on_download = listener_or_default(listener).on_download
    if parsed.recipe is not None:
        return pull_ready_form(parsed, on_download, verify)
    return hub.pull(parsed.name, parsed.revision, on_download, verify=verify)
