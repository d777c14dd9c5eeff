"""`localq pull`: bring a checkpoint, or a form that a repository has, into the Hugging Face cache."""

from __future__ import annotations

from typing import Annotated

import typer

from localq.cli.output import emit


def pull(
    repo: Annotated[str, typer.Argument(metavar="REPO[@REV][:FORM]", help="org/name, and a branch, tag or commit.")],
) -> None:
    """Download a checkpoint or an MLX folder into the Hugging Face cache, with :FORM a .gguf file; print its path."""
    from localq import api
    from localq.cli.progress import ByteBar, TerminalListener

    with ByteBar() as bar:
        path = api.pull(repo, listener=TerminalListener(bar, tell_reused=False))
    emit(str(path))
