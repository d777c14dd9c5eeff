"""`localq report`: one page with what an expert needs to trust a comparison of a model's forms."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli import arguments as flags
from localq.cli import measuring
from localq.cli.completion import complete_reference
from localq.cli.output import emit, say
from localq.errors import LocalqError, OptionError
from localq.measure.quality.windows import DEFAULT_MOST_WINDOWS

if TYPE_CHECKING:
    from localq.measure.page.content import Page
    from localq.measure.page.measurements import Measurements
    from localq.measure.page.run import ReportRequest
    from localq.measure.quality.results import EvalSettings
    from localq.measure.quality.run import EvalStep
    from localq.measure.speed.results import BenchReport, BenchSettings

_EXAMPLE = "for example: localq report toy-llama --html toy-llama.html"
_SUFFIXES = (".html", ".htm")

_References = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="REF",
        help="Artifacts of one model; without :FORMAT, both default formats.",
        autocompletion=complete_reference,
    ),
]
_Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page as HTML, with plots.")]
_Md = Annotated[bool, typer.Option("--md", help="Write it to stdout as Markdown (default without --html).")]
_Text = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="Text in UTF-8 to evaluate on (default: for the toys, their own)."),
]
_Windows = Annotated[
    int | None,
    typer.Option("--windows", metavar="N", help=f"Most windows of the text (default: {DEFAULT_MOST_WINDOWS})."),
]
_Bench = Annotated[
    Path | None, typer.Option("--bench", metavar="FILE", help="What `localq bench --json` wrote: measure no speed.")
]
_Eval = Annotated[
    Path | None, typer.Option("--eval", metavar="FILE", help="What `localq eval --json` wrote: evaluate nothing.")
]
_NoEval = Annotated[bool, typer.Option("--no-eval", help="Speed alone.")]

_BENCH_FLAGS = {"prompt_tokens": "-p", "generated_tokens": "-g", "depth_tokens": "-d", "repetitions": "-r"}
_EVAL_FLAGS = {"reference": "--reference", "text": "--text", "window": "--window", "windows": "--windows"}


def report(
    refs: _References = None,
    html: _Html = None,
    md: _Md = False,
    prompt_tokens: measuring.PromptTokens = None,
    generated_tokens: measuring.GeneratedTokens = None,
    depth_tokens: measuring.DepthTokens = None,
    repetitions: measuring.Repetitions = None,
    reference: measuring.Reference = None,
    text: _Text = None,
    window: measuring.Window = None,
    windows: _Windows = None,
    threads: flags.Threads = None,
    bench: _Bench = None,
    eval: _Eval = None,
    no_eval: _NoEval = False,
    models_dir: flags.ModelsDir = None,
) -> None:
    """Measure speed and quality of formats, and show which to take. The page says why, with all figures."""
    given = locals()
    _check_flags(given)
    if html is not None:
        _check_html(html)

    from localq.measure.page.content import page_of
    from localq.measure.page.run import ReportRequest
    from localq.measure.page.saved import load_bench, load_eval

    saved_bench = load_bench(bench) if bench is not None else None
    saved_eval = load_eval(eval) if eval is not None else None
    request = ReportRequest(
        references=tuple(refs or ()),
        bench=saved_bench.report if saved_bench else measuring.bench_settings(given),
        evaluation=saved_eval.report if saved_eval else None if no_eval else _eval_settings(given),
        models_dir=models_dir,
    )
    measurements = _measure(request, given)
    if saved_bench or saved_eval:
        commands = [
            saved_bench.command if saved_bench else _bench_command(given, measurements.bench.settings),
            saved_eval.command if saved_eval else _eval_command(given, measurements),
        ]
    else:
        commands = [_report_command(given, measurements)]
    _write(page_of(measurements, commands), measurements, html, md)


def _check_flags(given: Mapping[str, Any]) -> None:
    """Refuse what would be dropped silently, and what leaves nothing to show."""
    has_bench, has_eval, no_eval = given["bench"] is not None, given["eval"] is not None, given["no_eval"]
    if has_eval and no_eval:
        raise OptionError("--eval and --no-eval exclude each other", "choose one")
    if has_bench:
        _check_not_given(given, _BENCH_FLAGS, "--bench")
    if has_eval or no_eval:
        _check_not_given(given, _EVAL_FLAGS, "--eval" if has_eval else "--no-eval")
    measures = not has_bench or not (has_eval or no_eval)
    if measures and not given["refs"]:
        hint = "name one, or give --eval FILE, or --no-eval for speed alone" if has_bench else _EXAMPLE
        raise OptionError(f"there is no model to {'evaluate' if has_bench else 'measure'}", hint)
    if not measures and (given["refs"] or given["threads"] is not None or given["models_dir"]):
        raise OptionError(
            "nothing is measured now: everything was measured before", "leave out REF, --threads and --models-dir"
        )


def _check_not_given(given: Mapping[str, Any], names: Mapping[str, str], reason: str) -> None:
    found = [flag for name, flag in names.items() if given[name] is not None]
    if found:
        raise OptionError(f"with {reason}, there is nothing for {', '.join(found)} to do", "leave it out")


def _check_html(file: Path) -> None:
    if file.suffix.lower() not in _SUFFIXES:
        raise OptionError(f"--html is '{file}'; expected a name that ends in .html", "for example report.html")
    from localq.disk import check_writable
    from localq.measure.plot_style import load_matplotlib

    check_writable(file, "--html", replaced=True)
    load_matplotlib()


def _eval_settings(given: Mapping[str, Any]) -> EvalSettings:
    from localq.measure.quality.results import EvalSettings

    return EvalSettings(
        reference=given["reference"],
        text_file=given["text"],
        window_tokens=given["window"],
        most_windows=DEFAULT_MOST_WINDOWS if given["windows"] is None else given["windows"],
        threads=given["threads"],
    )


def _measure(request: ReportRequest, given: Mapping[str, Any]) -> Measurements:
    from localq.cli.bench_history import append_run
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.measure.page.run import RunListener, measure

    class Progress(RunListener):
        def on_bench_step(self, step: str) -> None:
            bar.close()  # of the conversions, which come before
            say(step)

        def on_bench(self, report: BenchReport) -> None:
            append_run(report, _bench_command(given, report.settings), None, given["models_dir"])

        def on_eval_step(self, step: EvalStep) -> None:
            steps.tell(step)

    with ByteBar() as bar, measuring.EvalSteps(bar) as steps:
        return measure(request, Progress(), TerminalListener(bar, tell_reused=False))


def _write(page: Page, measurements: Measurements, html: Path | None, md: bool) -> None:
    from localq.disk import write_text
    from localq.measure.page.html import render_html
    from localq.measure.page.markdown import render_markdown
    from localq.measure.page.plots import draw_plots

    try:
        if html is not None:
            write_text(html, render_html(page, draw_plots(measurements)))
            say(f"wrote {html}")
    except LocalqError:
        md = True  # whatever can't be written, what was measured is shown
        raise
    finally:
        if md or html is None:
            emit(render_markdown(page))


def _report_command(given: Mapping[str, Any], measurements: Measurements) -> str:
    """The line that measures both again; where the page goes is left out."""
    words = ["localq", "report", *given["refs"], *measuring.size_words(measurements.bench.settings)]
    words += ["--no-eval"] if given["no_eval"] else _text_words(given, measurements)
    return shlex.join([*words, *_shared_words(given)])


def _bench_command(given: Mapping[str, Any], settings: BenchSettings) -> str:
    return shlex.join(["localq", "bench", *given["refs"], *measuring.size_words(settings), *_shared_words(given)])


def _eval_command(given: Mapping[str, Any], measurements: Measurements) -> str:
    """Empty where nothing was evaluated."""
    if given["no_eval"]:
        return ""
    return shlex.join(["localq", "eval", *given["refs"], *_text_words(given, measurements), *_shared_words(given)])


def _text_words(given: Mapping[str, Any], measurements: Measurements) -> list[str]:
    report = measurements.evaluation
    return measuring.chosen_words(
        {
            "--reference": given["reference"],
            "--text": given["text"],
            "--window": report.text.window_tokens if report else None,
            "--windows": DEFAULT_MOST_WINDOWS if given["windows"] is None else given["windows"],
        }
    )


def _shared_words(given: Mapping[str, Any]) -> list[str]:
    return measuring.chosen_words({"--threads": given["threads"], "--models-dir": given["models_dir"]})
