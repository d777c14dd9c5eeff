"""`localq bench`: tokens per second per form on this machine, and how they changed."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from localq.cli import arguments as flags
from localq.cli import measuring
from localq.cli.bench_history import append_run, show_history
from localq.cli.completion import complete_recipe, complete_reference, complete_shape
from localq.cli.output import emit, emit_json, say
from localq.errors import OptionError
from localq.options import MOST_BATCH_TOKENS, LoadOptions

if TYPE_CHECKING:
    from localq.measure.forms import Form
    from localq.measure.speed.report import TableStyle
    from localq.measure.speed.results import BenchReport, BenchSettings

_EXAMPLE = "for example: localq bench toy-llama; or: localq bench --shape phi-4-mini --to gguf-q4_k_m"

_References = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="REF",
        help="Models or artifacts; without :FORMAT, both default formats are measured.",
        autocompletion=complete_reference,
    ),
]
_Delay = Annotated[
    float | None, typer.Option("--delay", metavar="SECONDS", help="Pause before each run, to cool down (default: 0).")
]
_Shapes = Annotated[
    list[str] | None,
    typer.Option(
        "--shape",
        metavar="NAME",
        help="Random weights at a public model's shape; a wrong name lists all (repeatable).",
        autocompletion=complete_shape,
    ),
]
_To = Annotated[
    list[str] | None,
    typer.Option("--to", metavar="FORMAT", help="A format for --shape (repeatable).", autocompletion=complete_recipe),
]
_Csv = Annotated[bool, typer.Option("--csv", help="Write CSV to stdout.")]
_Md = Annotated[bool, typer.Option("--md", help="Write Markdown tables to stdout.")]
_Jsonl = Annotated[
    Path | None,
    typer.Option("--jsonl", metavar="FILE", help="The history (default: bench-history.jsonl in the models folder)."),
]
_Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw bars, into a .png or .svg file.")]
_History = Annotated[bool, typer.Option("--history", help="Measure nothing; show how the speed of REF changed.")]

_MEASURING_FLAGS = {
    "prompt_tokens": "-p",
    "generated_tokens": "-g",
    "depth_tokens": "-d",
    "repetitions": "-r",
    "delay_seconds": "--delay",
    "shapes": "--shape",
    "to": "--to",
    "context_length": "-c",
    "threads": "--threads",
    "kv_cache_type": "--kv-cache-type",
    "flash_attention": "--flash-attention",
    "plot": "--plot",
}


def bench(
    refs: _References = None,
    prompt_tokens: measuring.PromptTokens = None,
    generated_tokens: measuring.GeneratedTokens = None,
    depth_tokens: measuring.DepthTokens = None,
    repetitions: measuring.Repetitions = None,
    delay_seconds: _Delay = None,
    shapes: _Shapes = None,
    to: _To = None,
    context_length: flags.ContextLength = None,
    threads: flags.Threads = None,
    kv_cache_type: flags.KvCacheType = None,
    flash_attention: flags.FlashAttention = None,
    batch_tokens: flags.BatchTokens = MOST_BATCH_TOKENS,
    models_dir: flags.ModelsDir = None,
    json: flags.Json = False,
    csv: _Csv = False,
    md: _Md = False,
    jsonl: _Jsonl = None,
    plot: _Plot = None,
    history: _History = False,
) -> None:
    """Measure prompt and generation speed, load time and memory. Formats take turns, each in its own process."""
    given = locals()
    if json + csv + md > 1:
        raise OptionError("--json, --csv and --md exclude each other", "choose one")
    if history:
        _check_history_flags(given)
        show_history(refs or [], jsonl, models_dir, json)
        return
    delay = given["delay_seconds"]
    if delay is not None and not math.isfinite(delay):
        raise OptionError(f"--delay is {delay}; expected seconds, 0 or more")
    settings = measuring.bench_settings(given)
    _check_request(refs, shapes, to)
    _check_files(jsonl, plot)

    from localq.measure.speed.bench import bench_forms

    with ExitStack() as stack:
        forms = [*_named_forms(refs or [], models_dir), *_random_forms(stack, given, settings)]
        report = bench_forms(forms, settings, on_step=say)
    command = _command(given, settings)
    try:
        append_run(report, command, jsonl, models_dir)
        _save_plot(report, plot)
    finally:  # whatever can't be written, what was measured is shown
        _show(report, command, "json" if json else "csv" if csv else "md" if md else "text")


def _check_history_flags(given: Mapping[str, Any]) -> None:
    measuring = [flag for name, flag in _MEASURING_FLAGS.items() if given[name] is not None]
    tables = [f"--{name}" for name in ("csv", "md") if given[name]]
    if measuring or tables:
        raise OptionError(
            f"--history measures nothing and has no {', '.join([*measuring, *tables])}",
            "give it models or forms, --jsonl, --models-dir or --json",
        )


def _check_request(refs: Sequence[str] | None, shapes: Sequence[str] | None, to: Sequence[str] | None) -> None:
    if not refs and not shapes:
        raise OptionError("there is no model to measure", _EXAMPLE)
    for shape in shapes or ():
        from localq.measure.shapes.shapes import shape_config

        shape_config(shape)  # names one that is not known, before anything is made
    if to and not shapes:
        raise OptionError(
            f"--to {to[0]} is for --shape alone", "a model's form stands behind its name: toy-phi:mlx-4bit"
        )


def _check_files(jsonl: Path | None, plot: Path | None) -> None:
    if jsonl is not None:
        from localq.disk import check_writable

        check_writable(jsonl, "--jsonl")
    if plot is not None:
        from localq.measure.speed.plot import check_plot

        check_plot(plot)


def _named_forms(refs: Sequence[str], models_dir: Path | None) -> list[Form]:
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.measure.forms import find_forms

    with ByteBar() as bar:
        return find_forms(refs, models_dir, TerminalListener(bar, tell_reused=False))


def _random_forms(stack: ExitStack, given: Mapping[str, Any], settings: BenchSettings) -> list[Form]:
    """Forms of random weights, which are deleted when `stack` ends."""
    if not given["shapes"]:
        return []
    from localq.measure.shapes.random_form import shape_forms

    context_length = settings.context_length or settings.least_context_length
    options = LoadOptions(**{**flags.load_options(given), "context_length": context_length})
    made = [
        shape_forms(shape, given["to"] or None, options, models_dir=given["models_dir"], on_step=say)
        for shape in given["shapes"]
    ]
    return [form for forms in made for form in stack.enter_context(forms)]


def _save_plot(report: BenchReport, file: Path | None) -> None:
    if file is not None:
        from localq.measure.speed.plot import save_plot

        save_plot(report, file)


def _show(report: BenchReport, command: str, style: TableStyle | Literal["json"]) -> None:
    from localq.measure.speed.report import render_table

    if style == "json":
        emit_json({**report.to_json(), "command": command})
    elif style == "text" and sys.stdout.isatty():
        emit(render_table(report, style, command, shutil.get_terminal_size().columns))
    else:
        emit(render_table(report, style, command))


def _command(given: Mapping[str, Any], settings: BenchSettings) -> str:
    """The line that measures the same again; what it writes is left out."""
    words = ["localq", "bench", *(given["refs"] or [])]
    words += [word for shape in given["shapes"] or [] for word in ("--shape", shape)]
    words += [word for recipe in given["to"] or [] for word in ("--to", recipe)]
    words += measuring.size_words(settings)
    chosen = {
        "--delay": given["delay_seconds"],
        "-c": given["context_length"],
        "--threads": given["threads"],
        "--kv-cache-type": given["kv_cache_type"],
        "--batch-tokens": given["batch_tokens"] if given["batch_tokens"] != MOST_BATCH_TOKENS else None,
        "--models-dir": given["models_dir"],
    }
    words += measuring.chosen_words(chosen)
    if given["flash_attention"] is not None:
        words.append("--flash-attention" if given["flash_attention"] else "--no-flash-attention")
    return shlex.join(words)
