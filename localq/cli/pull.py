"""`localq pull`: download a checkpoint, or an artifact that a repository has, into the Hugging Face cache."""

from __future__ import annotations

from typing import Annotated

import typer

from localq.cli.output import emit


def pull(
    repo: Annotated[
        str, typer.Argument(metavar="REPO[@REV][:FORMAT]", help="org/name; @REV is a branch, tag or commit.")
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read again what is there, and fetch what is damaged.")
    ] = False,
) -> None:
    """Download a model into the Hugging Face cache and print its path.

    A checkpoint or an MLX folder; with :FORMAT, such as :gguf-q4_k_m, a .gguf file of the repository. Every file is
    compared with the hash that the hub states, once; a download that stopped goes on where it stopped.
    """
    from localq import api
    from localq.cli.progress import ByteBar, TerminalListener

    with ByteBar() as bar:
        path = api.pull(repo, verify=verify, listener=TerminalListener(bar, tell_reused=False))
    emit(str(path))
