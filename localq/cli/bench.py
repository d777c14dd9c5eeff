"""`localq bench`: the speed of formats on this machine, and how it changed."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli import arguments as flags
from localq.cli import measuring
from localq.cli.completion import complete_recipe, complete_reference, complete_shape
from localq.cli.output import emit, emit_json, output_width, say
from localq.errors import ModelNotFoundError, OptionError
from localq.options import LoadOptions, SingleReplyKeywords

if TYPE_CHECKING:
    from localq.measure.forms import Form
    from localq.measure.reports import BenchReport, BenchSettings

_EXAMPLE = "for example: localq bench toy-llama; or: localq bench --shape phi-4-mini --to gguf-q4_k_m"
_MOST_LINES_NAMED = 8

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
_ContextLength = Annotated[
    int | None,
    typer.Option("-c", "--context-length", metavar="N", help="Of each artifact (default: what the tests need)."),
]
_BatchTokens = Annotated[
    int | None, typer.Option("--batch-tokens", metavar="N", help="Prompt tokens in one pass (default: 512).")
]
_Csv = Annotated[bool, typer.Option("--csv", help="Write CSV to stdout.")]
_Md = Annotated[bool, typer.Option("--md", help="Write Markdown tables to stdout.")]
_Jsonl = Annotated[
    Path | None,
    typer.Option("--jsonl", metavar="FILE", help="The history (default: bench-history.jsonl in the models folder)."),
]
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
    "batch_tokens": "--batch-tokens",
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
    context_length: _ContextLength = None,
    threads: flags.Threads = None,
    kv_cache_type: flags.KvCacheType = None,
    flash_attention: flags.FlashAttention = None,
    batch_tokens: _BatchTokens = None,
    models_dir: flags.ModelsDir = None,
    json: flags.Json = False,
    csv: _Csv = False,
    md: _Md = False,
    jsonl: _Jsonl = None,
    history: _History = False,
) -> None:
    """Measure speed, load time and memory.

    Formats take turns, and each runs in a process of its own.
    """
    given = locals()
    if json + csv + md > 1:
        raise OptionError("--json, --csv and --md exclude each other", "choose one")
    if history:
        _check_history_flags(given)
        _show_history(refs or [], jsonl, models_dir, json)
        return
    if delay_seconds is not None and not math.isfinite(delay_seconds):
        raise OptionError(f"--delay is {delay_seconds}; expected seconds, 0 or more")
    settings = measuring.bench_settings(given)
    _check_request(given)

    report = _measure(given, settings).model_copy(update={"command": _command(given, settings)})
    try:
        if not report.partial:
            measuring.append_to_history(report, jsonl, models_dir)
    finally:  # whatever can't be written, what was measured is shown
        _show(report, given)
    if report.partial:
        raise typer.Exit(130)


def _check_history_flags(given: Mapping[str, Any]) -> None:
    measures = [flag for name, flag in _MEASURING_FLAGS.items() if given[name] is not None]
    tables = [f"--{name}" for name in ("csv", "md") if given[name]]
    if measures or tables:
        raise OptionError(
            f"--history measures nothing and has no {', '.join([*measures, *tables])}",
            "give it models or artifacts, --jsonl, --models-dir or --json",
        )


def _check_request(given: Mapping[str, Any]) -> None:
    """What can be known before anything is made."""
    refs, shapes, to = given["refs"], given["shapes"], given["to"]
    if not refs and not shapes:
        raise OptionError("there is no model to measure", _EXAMPLE)
    for shape in shapes or ():
        from localq.measure.shapes import shape_config

        shape_config(shape)  # raises for one that is not known
    if to and not shapes:
        raise OptionError(
            f"--to {to[0]} is only for --shape", "a model's format is named behind a colon: toy-phi:mlx-4bit"
        )
    if given["jsonl"] is not None:
        from localq.disk import check_writable

        check_writable(given["jsonl"], "--jsonl")


def _measure(given: Mapping[str, Any], settings: BenchSettings) -> BenchReport:
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.measure import forms, speed

    with ByteBar() as bar, measuring.StepLine(bar) as steps, ExitStack() as stack:
        listener = TerminalListener(bar, tell_reused=False)
        found = forms.find_forms(given["refs"] or [], given["models_dir"], listener)
        found += _random_forms(stack, given, settings)
        return speed.bench_forms(found, settings, steps.show)


def _random_forms(stack: ExitStack, given: Mapping[str, Any], settings: BenchSettings) -> list[Form]:
    """Of random weights, which are deleted when `stack` ends."""
    if not given["shapes"]:
        return []
    from localq.measure.shapes import shape_forms

    chosen = {name: getattr(settings, name) for name in SingleReplyKeywords.__annotations__}
    made = [
        shape_forms(shape, given["to"] or None, LoadOptions(**chosen), models_dir=given["models_dir"], on_step=say)
        for shape in given["shapes"]
    ]
    return [form for forms in made for form in stack.enter_context(forms)]


def _show(report: BenchReport, given: Mapping[str, Any]) -> None:
    from localq.measure.documents import render_report

    if given["json"]:
        emit_json(report.model_dump(mode="json"))
    else:
        emit(render_report(report, "csv" if given["csv"] else "md" if given["md"] else "text", output_width()))


def _show_history(refs: Sequence[str], chosen: Path | None, models_dir: Path | None, json: bool) -> None:
    """Write the runs of some models and artifacts, or of all of them, as tables or JSON."""
    from localq.measure.documents import render_history
    from localq.measure.history import history_file, read_history, select_forms

    file = chosen or history_file(models_dir)
    if chosen is None and not file.exists():
        say(f"no history in {file.parent} yet; it begins with a run, for example: localq bench toy-llama")
        reports: list[BenchReport] = []
    else:
        reports, skipped = read_history(file)
        if skipped:
            lines = ", ".join(map(str, skipped[:_MOST_LINES_NAMED]))
            more = " ..." if len(skipped) > _MOST_LINES_NAMED else ""
            say(f"warning: {file}: skipped what is damaged or of an older version, line {lines}{more}")
        for ref in refs:
            if not select_forms(reports, [ref]):
                names = ", ".join(sorted({result.name for report in reports for result in report.results}))
                raise ModelNotFoundError(f"{file} has no run of {ref}", f"it has: {names}" if names else "")
        reports = select_forms(reports, refs)
    if json:
        emit_json([report.model_dump(mode="json") for report in reports])
    elif reports:
        emit(render_history(reports, output_width()))


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
        "--batch-tokens": given["batch_tokens"],
        "--models-dir": given["models_dir"],
    }
    words += measuring.chosen_words(chosen)
    if given["flash_attention"] is not None:
        words.append("--flash-attention" if given["flash_attention"] else "--no-flash-attention")
    return shlex.join(words)
