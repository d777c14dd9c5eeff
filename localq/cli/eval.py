"""`localq eval`: what quantization cost, form by form."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli import arguments as flags
from localq.cli import measuring
from localq.cli.completion import complete_reference
from localq.cli.output import emit, emit_json
from localq.errors import OptionError
from localq.measure.quality.windows import DEFAULT_MOST_WINDOWS

if TYPE_CHECKING:
    from localq.measure.quality.report import TableStyle
    from localq.measure.quality.results import EvalReport

_References = Annotated[
    list[str],
    typer.Argument(
        metavar="REF",
        help="Artifacts of one model; without :FORMAT, both default formats.",
        autocompletion=complete_reference,
    ),
]
_Text = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="Text in UTF-8, or - for stdin (default: for the toys, their own)."),
]
_ScoreFrom = Annotated[
    int | None, typer.Option("--score-from", metavar="N", help="First scored position (default: half of the window).")
]
_Windows = Annotated[int, typer.Option("--windows", metavar="N", help="Most windows of the text.")]
_NoNoiseFloor = Annotated[
    bool, typer.Option("--no-noise-floor", help="Don't compare the engines without quantization first.")
]
_Csv = Annotated[bool, typer.Option("--csv", help="Write CSV to stdout.")]
_Md = Annotated[bool, typer.Option("--md", help="Write Markdown tables to stdout.")]


def eval(
    refs: _References,
    reference: measuring.Reference = None,
    text: _Text = None,
    window: measuring.Window = None,
    score_from: _ScoreFrom = None,
    windows: _Windows = DEFAULT_MOST_WINDOWS,
    no_noise_floor: _NoNoiseFloor = False,
    threads: flags.Threads = None,
    models_dir: flags.ModelsDir = None,
    json: flags.Json = False,
    csv: _Csv = False,
    md: _Md = False,
) -> None:
    """Measure on a text what quantization cost in quality. Prints KL divergence, same top token and perplexity."""
    given = locals()
    if json + csv + md > 1:
        raise OptionError("--json, --csv and --md exclude each other", "choose one")
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.measure.quality.evaluate import evaluate
    from localq.measure.quality.results import EvalSettings

    settings = EvalSettings(
        reference=reference,
        text_file=text,
        window_tokens=window,
        first_scored=score_from,
        most_windows=windows,
        threads=threads,
        noise_floor=not no_noise_floor,
    )
    with ByteBar() as bar, measuring.EvalSteps(bar) as steps:
        report = evaluate(refs, settings, models_dir, TerminalListener(bar, tell_reused=False), steps.tell)
    command = _command(given, report)
    if json:
        emit_json({**report.to_json(), "command": command})
    else:
        _show_table(report, "csv" if csv else "md" if md else "text", command)


def _show_table(report: EvalReport, style: TableStyle, command: str) -> None:
    from localq.measure.quality.report import render_evaluation

    if style == "text" and sys.stdout.isatty():
        emit(render_evaluation(report, style, command, shutil.get_terminal_size().columns))
    else:
        emit(render_evaluation(report, style, command))


def _command(given: Mapping[str, Any], report: EvalReport) -> str:
    """The line that evaluates the same again."""
    words = ["localq", "eval", *given["refs"]]
    used = report.text
    chosen = {
        "--reference": given["reference"],
        "--text": given["text"],
        "--window": used.window_tokens,
        "--score-from": used.first_scored,
        "--windows": given["windows"],
        "--threads": given["threads"],
        "--models-dir": given["models_dir"],
    }
    words += measuring.chosen_words(chosen)
    return shlex.join([*words, *(["--no-noise-floor"] if given["no_noise_floor"] else [])])
