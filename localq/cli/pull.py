"""`localq pull`: bring a checkpoint into the Hugging Face cache."""

from __future__ import annotations

from typing import Annotated

import typer

from localq.cli.output import emit
from localq.errors import ModelReferenceError
from localq.reference import parse_reference


def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO[@REV]", help="org/name, and a branch, tag or commit.")],
) -> None:
    """Download a checkpoint into the Hugging Face cache and print its folder."""
    from localq.checkpoint.hub import pull as pull_snapshot
    from localq.cli.progress import ByteBar, TerminalListener

    reference = parse_reference(repo)
    if reference.kind != "repo":
        raise ModelReferenceError(f"{repo} is here already: {reference.path}", "pull takes a repository: org/name")
    if reference.recipe is not None:
        raise ModelReferenceError(
            f"{repo} names a form; pull brings the checkpoint",
            f"localq convert {reference.name} --to {reference.recipe.name}",
        )
    with ByteBar() as bar:
        listener = TerminalListener(bar, tell_reused=False)
        snapshot = pull_snapshot(reference.name, reference.revision, listener.on_download)
    emit(str(snapshot.folder))
