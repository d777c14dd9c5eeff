"""`localq pull`: download a checkpoint, or an artifact that a repository has, into the Hugging Face cache."""

from __future__ import annotations

from typing import Annotated

import typer

from localq.cli.output import emit
from localq.errors import ModelReferenceError
from localq.reference import parse_reference


def pull(
    repo: Annotated[
        str, typer.Argument(metavar="REPO[@REV][:FORMAT]", help="org/name; @REV is a branch, tag or commit.")
    ],
) -> None:
    """Download a model into the Hugging Face cache and print its path.

    A checkpoint or an MLX folder; with :FORMAT, such as :gguf-q4_k_m, a .gguf file of the repository.
    """
    from localq.checkpoint.hub import pull as pull_snapshot
    from localq.checkpoint.source import pull_ready_form
    from localq.cli.progress import ByteBar, TerminalListener

    reference = parse_reference(repo)
    if reference.kind != "repo":
        raise ModelReferenceError(
            f"{repo} is on this machine already: {reference.path}", "pull needs a repository: org/name"
        )
    with ByteBar() as bar:
        listener = TerminalListener(bar, tell_reused=False)
        if reference.recipe is None:
            path = pull_snapshot(reference.name, reference.revision, listener.on_download)
        else:
            path = pull_ready_form(reference, listener.on_download)
    emit(str(path))
