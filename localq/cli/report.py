"""`localq report`: speed and quality of a model's formats side by side, and which of them to take."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli import arguments as flags
from localq.cli import measuring
from localq.cli.completion import complete_reference
from localq.cli.output import emit, output_width, say
from localq.errors import LocalqError, OptionError
from localq.measure.windows import DEFAULT_MOST_WINDOWS

if TYPE_CHECKING:
    from localq.measure.page import Page
    from localq.measure.reports import BenchReport, EvalReport

_EXAMPLE = "for example: localq report toy-llama --html toy-llama.html"

_References = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="REF",
        help="Artifacts of one model; without :FORMAT, both default formats are measured.",
        autocompletion=complete_reference,
    ),
]
_Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page in HTML.")]
_Md = Annotated[bool, typer.Option("--md", help="Write Markdown to stdout.")]
_Text = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="Text in UTF-8 to evaluate on (default: the toys' own text)."),
]
_Windows = Annotated[
    int | None,
    typer.Option("--windows", metavar="N", help=f"At most so many windows (default: {DEFAULT_MOST_WINDOWS})."),
]
_Bench = Annotated[
    Path | None, typer.Option("--bench", metavar="FILE", help="Read speed from what `bench --json` wrote.")
]
_Eval = Annotated[
    Path | None, typer.Option("--eval", metavar="FILE", help="Read quality from what `eval --json` wrote.")
]
_NoEval = Annotated[bool, typer.Option("--no-eval", help="Measure speed alone.")]

_BENCH_FLAGS = {"prompt_tokens": "-p", "generated_tokens": "-g", "depth_tokens": "-d", "repetitions": "-r"}
_EVAL_FLAGS = {"baseline": "--baseline", "text": "--text", "window": "--window", "windows": "--windows"}


def report(
    refs: _References = None,
    html: _Html = None,
    md: _Md = False,
    prompt_tokens: measuring.PromptTokens = None,
    generated_tokens: measuring.GeneratedTokens = None,
    depth_tokens: measuring.DepthTokens = None,
    repetitions: measuring.Repetitions = None,
    baseline: measuring.Baseline = None,
    text: _Text = None,
    window: measuring.Window = None,
    windows: _Windows = None,
    threads: flags.Threads = None,
    bench: _Bench = None,
    eval: _Eval = None,
    no_eval: _NoEval = False,
    models_dir: flags.ModelsDir = None,
) -> None:
    """Measure speed and quality, and show which format to take.

    Speed first, then quality of the same formats, in the terminal or on one page.
    """
    given = locals()
    _check_flags(given)
    if html is not None:
        from localq.disk import check_writable

        if html.suffix.lower() not in (".html", ".htm"):
            raise OptionError(f"--html is '{html}'; expected a name that ends in .html", "for example report.html")
        check_writable(html, "--html", replaced=True)

    from localq.measure.page import make_page

    speed, quality = _measure(given)
    _write(make_page(speed, quality, _commands(given, speed, quality)), html, md)
    if speed.partial and bench is None:
        raise typer.Exit(130)


def _check_flags(given: Mapping[str, Any]) -> None:
    """Refuse what would be dropped silently, and what leaves nothing to show."""
    has_bench, has_eval, no_eval = given["bench"] is not None, given["eval"] is not None, given["no_eval"]
    if has_eval and no_eval:
        raise OptionError("--eval and --no-eval exclude each other", "choose one")
    unused = {"--bench": _BENCH_FLAGS if has_bench else {}, "--eval": _EVAL_FLAGS if has_eval else {}}
    unused["--no-eval"] = _EVAL_FLAGS if no_eval else {}
    for reason, names in unused.items():
        found = [flag for name, flag in names.items() if given[name] is not None]
        if found:
            raise OptionError(f"{', '.join(found)} can't be used with {reason}", "leave it out")
    measures = not has_bench or not (has_eval or no_eval)
    if measures and not given["refs"]:
        hint = "name one, or give --eval FILE, or --no-eval for speed alone" if has_bench else _EXAMPLE
        raise OptionError(f"there is no model to {'evaluate' if has_bench else 'measure'}", hint)
    if not measures and (given["refs"] or given["threads"] is not None or given["models_dir"]):
        raise OptionError("all was measured before, nothing is now", "leave out REF, --threads and --models-dir")


def _measure(given: Mapping[str, Any]) -> tuple[BenchReport, EvalReport | None]:
    """Each half with the line that repeats it; a bench that is measured now goes into the history."""
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.measure.quality import EvalSettings
    from localq.measure.report import ReportRequest, measure
    from localq.measure.reports import BenchReport, EvalReport, load_report

    bench, evaluation = given["bench"], given["eval"]
    chosen = {
        "baseline": given["baseline"],
        "text_file": given["text"],
        "window_tokens": given["window"],
        "most_windows": given["windows"],
        "threads": given["threads"],
    }
    settings = EvalSettings(**{name: value for name, value in chosen.items() if value is not None})
    request = ReportRequest(
        references=tuple(given["refs"] or ()),
        bench=load_report(bench, BenchReport) if bench else measuring.bench_settings(given),
        evaluation=load_report(evaluation, EvalReport) if evaluation else None if given["no_eval"] else settings,
        models_dir=given["models_dir"],
    )

    def on_bench(report: BenchReport) -> None:
        command = _command("bench", given, measuring.size_words(report.settings))
        measuring.append_to_history(report.model_copy(update={"command": command}), None, given["models_dir"])

    with ByteBar() as bar, measuring.StepLine(bar) as steps:
        return measure(request, on_bench, TerminalListener(bar, tell_reused=False), steps.show)


def _commands(given: Mapping[str, Any], speed: BenchReport, quality: EvalReport | None) -> list[str]:
    """What repeats it: one line where both were measured now, else a line for each half. Where the page goes is left
    out."""
    bench_words, eval_words = measuring.size_words(speed.settings), []
    if quality is not None:
        chosen = {
            "--baseline": given["baseline"],
            "--text": given["text"],
            "--window": quality.settings.window_tokens,
            "--windows": DEFAULT_MOST_WINDOWS if given["windows"] is None else given["windows"],
        }
        eval_words = measuring.chosen_words(chosen)
    if given["bench"] is None and given["eval"] is None:
        return [_command("report", given, [*bench_words, *(eval_words or ["--no-eval"])])]
    commands = [speed.command if given["bench"] else _command("bench", given, bench_words)]
    if quality is not None:
        commands.append(quality.command if given["eval"] else _command("eval", given, eval_words))
    return list(filter(None, commands))


def _command(verb: str, given: Mapping[str, Any], words: list[str]) -> str:
    shared = measuring.chosen_words({"--threads": given["threads"], "--models-dir": given["models_dir"]})
    return shlex.join(["localq", verb, *given["refs"], *words, *shared])


def _write(page: Page, html: Path | None, md: bool) -> None:
    from localq.disk import write_text
    from localq.measure.page import render_html
    from localq.measure.tables import render

    shown = "\n".join(page.document.verdict)
    try:
        if html is not None:
            write_text(html, render_html(page))
            say(f"wrote {html}")
    except LocalqError:
        html = None  # whatever can't be written, what was measured is shown
        raise
    finally:
        if md:
            shown = render(page.document, "md")
        elif html is None:
            shown = render(page.document, "text", output_width())
        emit(shown)
