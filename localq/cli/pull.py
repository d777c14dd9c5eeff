"""`localq pull`: bring a checkpoint, or a form that a repository has, into the Hugging Face cache."""

from __future__ import annotations

from typing import Annotated

import typer

from localq.cli.output import emit
from localq.errors import ModelReferenceError
from localq.reference import parse_reference


def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO[@REV][:FORMAT]", help="org/name, and a branch, tag or commit.")],
) -> None:
    """Download a checkpoint or an MLX folder; print its path.

    It goes into the Hugging Face cache, which other tools share. With :FORMAT, download a .gguf file alone.
    """
    from localq.checkpoint.hub import pull as pull_snapshot
    from localq.checkpoint.source import pull_ready_form
    from localq.cli.progress import ByteBar, TerminalListener

    reference = parse_reference(repo)
    if reference.kind != "repo":
        raise ModelReferenceError(f"{repo} is here already: {reference.path}", "pull takes a repository: org/name")
    with ByteBar() as bar:
        listener = TerminalListener(bar, tell_reused=False)
        if reference.recipe is None:
            path = pull_snapshot(reference.name, reference.revision, listener.on_download).folder
        else:
            path = pull_ready_form(reference, listener.on_download)
    emit(str(path))
