"""`localq eval`: what quantization changes in the predictions of a model."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli import arguments as flags
from localq.cli import measuring
from localq.cli.completion import complete_reference
from localq.cli.output import emit, emit_json, output_width
from localq.errors import OptionError
from localq.measure.windows import DEFAULT_MOST_WINDOWS

if TYPE_CHECKING:
    from localq.measure.reports import EvalReport

_References = Annotated[
    list[str],
    typer.Argument(
        metavar="REF",
        help="Artifacts of one model; without :FORMAT, the formats that `convert` makes by default.",
        autocompletion=complete_reference,
    ),
]
_Text = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="Text in UTF-8, or - for stdin (default: the toys' own text)."),
]
_ScoreFrom = Annotated[
    int | None, typer.Option("--score-from", metavar="N", help="First scored position (default: half of the window).")
]
_Windows = Annotated[int, typer.Option("--windows", metavar="N", help="At most so many windows of the text.")]
_NoNoiseFloor = Annotated[
    bool, typer.Option("--no-noise-floor", help="Don't compare the engines without quantization first.")
]
_Csv = Annotated[bool, typer.Option("--csv", help="Write CSV to stdout.")]
_Md = Annotated[bool, typer.Option("--md", help="Write Markdown tables to stdout.")]


def eval(
    refs: _References,
    baseline: measuring.Baseline = None,
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
    """Measure what quantization costs in quality.

    Compares artifacts with the unquantized one on a text: KL divergence, same top token, perplexity.

    The baseline's predictions are in a temporary file in the models folder, 4 bytes for each token of the vocabulary
    at each scored position: 4.2 GB for 32 windows of 512 tokens and a vocabulary of 128,256.
    """
    given = locals()
    if json + csv + md > 1:
        raise OptionError("--json, --csv and --md exclude each other", "choose one")
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.measure.documents import render_report
    from localq.measure.quality import EvalSettings, evaluate

    settings = EvalSettings(
        baseline=baseline,
        text_file=text,
        window_tokens=window,
        first_scored=score_from,
        most_windows=windows,
        threads=threads,
        noise_floor=not no_noise_floor,
    )
    with ByteBar() as bar, measuring.StepLine(bar) as steps:
        report = evaluate(refs, settings, models_dir, TerminalListener(bar, tell_reused=False), steps.show)
    report = report.model_copy(update={"command": _command(given, report)})
    if json:
        emit_json(report.model_dump(mode="json"))
    else:
        emit(render_report(report, "csv" if csv else "md" if md else "text", output_width()))


def _command(given: Mapping[str, Any], report: EvalReport) -> str:
    """The line that repeats it."""
    words = ["localq", "eval", *given["refs"]]
    used = report.settings
    chosen = {
        "--baseline": given["baseline"],
        "--text": given["text"],
        "--window": used.window_tokens,
        "--score-from": used.first_scored,
        "--windows": given["windows"],
        "--threads": given["threads"],
        "--models-dir": given["models_dir"],
    }
    words += measuring.chosen_words(chosen)
    return shlex.join([*words, *(["--no-noise-floor"] if given["no_noise_floor"] else [])])
