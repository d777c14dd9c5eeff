"""The command `localq`: its verbs, each imported when it is used. Errors are shown here and nowhere else."""

from __future__ import annotations

import difflib
import functools
import importlib
import json
import keyword
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from localq.cli.output import emit, say, write_no_more
from localq.cli.plain_values import convert_plainly
from localq.errors import LocalqError, shown
from localq.version import __version__

_EPILOG = """\b
REF is org/name, org/name@revision, a folder, a .gguf file, toy-llama or
toy-phi. A format follows a colon: toy-phi:gguf-q8_0, or short: toy-phi:q8_0.
`run REF` is chat, `run REF PROMPT` is generate, and `list` is ls.

\b
Converted models are kept in models/ of this checkout of localq, or in your
cache folder where there is no checkout. --models-dir or the environment
variable LOCALQ_MODELS names another folder.

\b
Exit status: 0 success; 1 an error, with a hint how to fix it; 2 wrong usage;
130 Ctrl-C. With --json, an error is a JSON object in the last line of stderr,
with the keys error, hint and code.
"""  # \b keeps these lines as they are: names would be cut at their hyphens

VERBS = {
    "pull": "Download a model into the Hugging Face cache and print its path.",
    "convert": "Convert a checkpoint to MLX and GGUF.",
    "calibrate": "Measure which weights of a model matter most.",
    "recipes": "List the formats: bits per weight, and what they are good for.",
    "ls": "List converted models.",
    "show": "Show how a model's artifacts were made, and their files.",
    "rm": "Delete converted models.",
    "verify": "Compare artifacts with the hashes in their manifests.",
    "prune": "Delete half-written files of killed conversions.",
    "import": "Take a .gguf file or an MLX folder into the models folder.",
    "export": "Write a plain .gguf file or MLX folder for other programs.",
    "generate": "Answer one prompt; convert the model first if needed.",
    "chat": "Talk to a model; /help lists the commands.",
    "serve": "Serve models to programs, with OpenAI's protocol.",
    "bench": "Measure speed, load time and memory.",
    "eval": "Measure what quantization costs in quality.",
    "report": "Measure speed and quality, and show which format to take.",
    "doctor": "Find a checkpoint's faults, and how to fix them.",
    "demo": "Convert two toy models to MLX and GGUF, and compare them.",
}
"""Each verb is the function of that name in the module of that name; its docstring begins with this sentence."""

_DELETING = ("rm", "prune")
"""Verbs that are never suggested: a wrong guess would cost data."""


class Verbs(TyperGroup):
    """The verbs by name, each loaded when it runs: `--help` and completion need only the sentences."""

    def __init__(self, **given: Any) -> None:
        given["commands"] = {name: TyperCommand(name, short_help=sentence) for name, sentence in VERBS.items()}
        super().__init__(**given)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The name, the command and the words that are left; a usage error that names the nearest verb."""
        name, words = args[0], args[1:]
        if name == "list":
            name = "ls"
        if name == "run":
            name = "chat" if ctx.resilient_parsing else _run_as(words)
        if name in VERBS:
            return name, load_verb(name), words
        if not ctx.resilient_parsing:  # as it is while a shell completes
            near = difflib.get_close_matches(name, [verb for verb in VERBS if verb not in _DELETING], 1)
            ctx.fail(f"No such command {name!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return None, None, words

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """See click."""
        convert_plainly(self.get_params(ctx))
        ctx.meta["localq.json"] = "--json" in args[: args.index("--") if "--" in args else None]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb. With --json, wrong usage is an object too."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if not (ctx.meta["localq.json"] and hasattr(error, "format_message")):
                raise
            _show_record(error.format_message(), "`localq VERB --help` explains the arguments", 2)
            raise typer.Exit(2) from error


def load_verb(name: str) -> Any:
    """The command of a verb."""
    from localq.cli.arguments import Verb

    python_name = f"{name}_" if keyword.iskeyword(name) else name
    module = importlib.import_module(f"localq.cli.{python_name}")
    alone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    alone.command(name, cls=getattr(module, "ChatCommand", Verb))(_shows_errors(getattr(module, python_name)))
    return typer.main.get_command(alone)


def _run_as(words: Sequence[str]) -> str:
    """What `localq run WORDS` does: `generate` where a prompt is given, as PROMPT or through a pipe; else `chat`."""
    if {"-h", "--help"} & set(words):
        return "chat"
    try:
        given = load_verb("generate").make_context("generate", list(words)).params
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return "chat"  # a usage error: an option of chat, or no model
    is_piped = sys.stdin is not None and not sys.stdin.isatty()
    return "generate" if is_piped or given["prompt"] is not None else "chat"


app = typer.Typer(
    name="localq",
    cls=Verbs,
    help="Convert Phi and Llama checkpoints to MLX and GGUF, talk to both, and measure which runs better here.",
    epilog=_EPILOG,
    no_args_is_help=True,
    # Rich's help costs 200 ms more; tracebacks are shown with LOCALQ_DEBUG=1 only.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _shows_errors(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a command raises into a message on stderr and an exit status."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        is_json = bool(given.get("json"))
        try:
            with _ctrl_c_raises():
                command(**given)
        except KeyboardInterrupt:
            say("")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # The reader, such as `head`, has closed the pipe.
            write_no_more()
            raise typer.Exit(0) from None
        except LocalqError as error:
            from localq.store.names import hint_with_nearest

            _show(error, error.message, hint_with_nearest(error, given.get("models_dir")), is_json)
            raise typer.Exit(1) from error
        except typer.Exit:
            raise
        except Exception as error:
            if type(error).__module__.startswith(("typer", "click")):
                raise  # a usage error, which typer shows
            message = f"localq failed unexpectedly: {type(error).__name__}: {shown(error, 1000)}"
            _show(error, message, "run it again with LOCALQ_DEBUG=1 and report what it prints", is_json)
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


def _show(error: BaseException, message: str, hint: str, is_json: bool) -> None:
    if os.environ.get("LOCALQ_DEBUG"):
        traceback.print_exception(error)
    if is_json:
        _show_record(message, hint, 1)
        return
    say(f"error: {message}")
    if hint:
        say(f"hint: {hint}")


def _show_record(message: str, hint: str, code: int) -> None:
    say(json.dumps({"error": message, "hint": hint, "code": code}, ensure_ascii=False))


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


def _end(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def main(arguments: list[str] | None = None) -> None:
    """Run one verb; None takes the command line's arguments."""
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        # As an exception, so that workers are ended and unfinished files removed. Under `nohup` SIGHUP is ignored, and
        # stays so.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    if os.environ.get("_LOCALQ_COMPLETE") == "complete_bash":
        from localq.cli.completion import bash_words_joined

        bash_words_joined(lambda: app(arguments, prog_name="localq"))
    else:
        app(arguments, prog_name="localq")
