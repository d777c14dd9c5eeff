"""The verbs of `localq`. Each one parses, makes one call and prints; errors are shown here and nowhere else."""

from __future__ import annotations

import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from localq.cli import bench, chat, convert, demo, doctor, eval, generate, ls, prune, pull, report, rm, show, verify
from localq.cli.arguments import Verb
from localq.cli.output import emit, say, write_no_more
from localq.errors import LocalqError
from localq.version import __version__

_EPILOG = """\b
REF is org/name, org/name@revision, a folder, a .gguf file, toy-llama or
toy-phi. A format follows a colon: toy-phi:gguf-q8_0.

\b
Converted models are kept in models/ of this checkout of localq, or in your
cache folder where there is no checkout. --models-dir or the environment
variable LOCALQ_MODELS names another folder.
"""  # \b keeps these lines as they are: names would be cut at their hyphens

app = typer.Typer(
    name="localq",
    help="Convert Phi and Llama checkpoints to MLX and GGUF, talk to both, and measure which runs better here.",
    epilog=_EPILOG,
    no_args_is_help=True,
    # Rich's help costs 200 ms more; tracebacks are shown with LOCALQ_DEBUG=1 only.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS = (
    pull.pull,
    convert.convert,
    ls.ls,
    show.show,
    rm.rm,
    verify.verify,
    prune.prune,
    generate.generate,
    chat.chat,
    bench.bench,
    eval.eval,
    report.report,
    doctor.doctor,
    demo.demo,
)


def _shows_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into a message on stderr and an exit status."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with _ctrl_c_raises():
                command(*args, **kwargs)
        except KeyboardInterrupt:
            say("")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader, such as `head`, has closed the pipe.
            write_no_more()
            raise typer.Exit(0) from None
        except LocalqError as error:
            _show(error, error.message, error.hint)
            raise typer.Exit(1) from error
        except typer.Exit:
            raise
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):
                raise  # a usage error, which typer shows
            kind = type(error).__name__
            _show(
                error,
                f"localq failed unexpectedly: {kind}: {error}",
                "run it again with LOCALQ_DEBUG=1 and report what it prints",
            )
            raise typer.Exit(1) from error

    return run


@contextmanager
def _ctrl_c_raises() -> Iterator[None]:
    """Let Ctrl-C raise KeyboardInterrupt, so that a verb can clean up."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as a shell's `&` leaves it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _show(error: BaseException, message: str, hint: str) -> None:
    if os.environ.get("LOCALQ_DEBUG"):
        traceback.print_exception(error)
    say(f"error: {message}")
    if hint:
        say(f"hint: {hint}")


def _print_version(wanted: bool) -> None:
    if wanted:
        emit(f"localq {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


for _command in _COMMANDS:
    app.command(cls=chat.ChatCommand if _command is chat.chat else Verb)(_shows_errors(_command))


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def main(arguments: list[str] | None = None) -> None:
    """Run one verb; None takes the command line's arguments."""
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        # As an exception, so that workers are ended and unfinished files removed. Under `nohup` SIGHUP is ignored, and
        # stays so.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    app(arguments, prog_name="localq")
