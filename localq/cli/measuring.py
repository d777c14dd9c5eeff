"""What the verbs that measure share: flags, settings, progress, and the words that repeat a run."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli import arguments as flags
from localq.cli.output import say, stderr_is_terminal
from localq.errors import OptionError
from localq.options import LoadOptions

if TYPE_CHECKING:
    from localq.cli.progress import ByteBar
    from localq.measure.quality.run import EvalStep
    from localq.measure.speed.results import BenchSettings

PromptTokens = Annotated[
    list[str] | None,
    typer.Option("-p", "--prompt-tokens", metavar="N[,N]", help="Prompt lengths; 0: none (default: 512)."),
]
GeneratedTokens = Annotated[
    list[str] | None,
    typer.Option("-g", "--generated-tokens", metavar="N[,N]", help="Reply lengths; 0: none (default: 128)."),
]
DepthTokens = Annotated[
    list[str] | None,
    typer.Option("-d", "--depth-tokens", metavar="N[,N]", help="Tokens in the cache before each (default: 0)."),
]
Repetitions = Annotated[
    int | None, typer.Option("-r", "--repetitions", metavar="N", help="Counted runs (default: 10).")
]
Reference = Annotated[
    str | None,
    typer.Option("--reference", metavar="REF", help="The form to compare with (default: the unquantized GGUF form)."),
]
Window = Annotated[
    int | None, typer.Option("--window", metavar="N", help="Tokens that are foretold together (default: 512).")
]


def bench_settings(given: Mapping[str, Any]) -> BenchSettings:
    """The settings among a command's arguments, which have the same names."""
    from localq.measure.speed.results import BenchSettings

    LoadOptions(**flags.load_options(given))  # names values that no engine takes
    sizes = {
        "prompt_tokens": token_counts("-p", given["prompt_tokens"], least=1),
        "generated_tokens": token_counts("-g", given["generated_tokens"], least=1),
        "depth_tokens": token_counts("-d", given["depth_tokens"], least=0),
    }
    chosen: dict[str, Any] = {name: given.get(name) for name in BenchSettings.__dataclass_fields__} | sizes
    return BenchSettings(**{name: value for name, value in chosen.items() if value is not None})


def token_counts(flag: str, texts: Sequence[str] | None, least: int) -> tuple[int, ...] | None:
    """The numbers of a flag in their order, each once; those below `least`, a 0 for none, are left out."""
    if texts is None:
        return None
    parts = [part.strip() for text in texts for part in text.split(",")]
    for part in parts:
        if not re.fullmatch(r"[0-9]{1,9}", part):
            raise OptionError(f"{flag} has {part!r}; expected a number of tokens", f"for example: {flag} 512,2048")
    return tuple(dict.fromkeys(number for number in map(int, parts) if number >= least))


def size_words(settings: BenchSettings) -> list[str]:
    """The flags that measure the same tests as often."""
    sizes = {"-p": settings.prompt_tokens, "-g": settings.generated_tokens}
    if settings.depth_tokens != (0,):
        sizes["-d"] = settings.depth_tokens
    words = [word for flag, counts in sizes.items() for word in (flag, ",".join(map(str, counts)) or "0")]
    return [*words, "-r", str(settings.repetitions)]


def chosen_words(chosen: Mapping[str, object]) -> list[str]:
    """Flags with their values, those that were chosen."""
    return [word for flag, value in chosen.items() if value is not None for word in (flag, f"{value}")]


class EvalSteps:
    """Tells how far an evaluation is: a line for every form, which counts the windows on a terminal. A context
    manager."""

    def __init__(self, bar: ByteBar) -> None:
        self._bar = bar
        self._is_line_open = False

    def tell(self, step: EvalStep) -> None:
        """What comes next."""
        self._bar.close()  # of the conversions, which come before
        name = f"{step.number}/{step.forms} {step.form}"
        if stderr_is_terminal():
            self._is_line_open = step.window < step.windows
            end = "" if self._is_line_open else "\n"
            sys.stderr.write(f"\r{name}: window {step.window}/{step.windows}{end}")
            sys.stderr.flush()
        elif step.window == 1:
            say(f"{name}: {step.windows} windows")

    def __enter__(self) -> EvalSteps:
        return self

    def __exit__(self, *error: object) -> None:
        if self._is_line_open:
            say("")
