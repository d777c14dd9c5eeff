"""`localq bench`: tokens per second per form on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from localq.cli import arguments as flags
from localq.cli.output import emit, emit_json, say
from localq.errors import OptionError


def bench(
    refs: Annotated[
        list[str],
        typer.Argument(
            metavar="REF...", help="Models or forms; a model without :RECIPE is measured in both default forms."
        ),
    ],
    prompt_tokens: Annotated[int, typer.Option("-p", "--prompt-tokens", metavar="N", help="Prompt length.")] = 512,
    generated_tokens: Annotated[int, typer.Option("-g", "--generated-tokens", metavar="N", help="Reply length.")] = 128,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", metavar="N", help="Counted runs.")] = 5,
    context_length: flags.ContextLength = None,
    threads: flags.Threads = None,
    models_dir: flags.ModelsDir = None,
    json: flags.Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV to stdout.")] = False,
    md: Annotated[bool, typer.Option("--md", help="Write a Markdown table to stdout.")] = False,
) -> None:
    """Measure prompt and generation speed, load time and memory; forms take turns, each in its own process."""
    if json + csv + md > 1:
        raise OptionError("--json, --csv and --md exclude each other", "choose one")
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.measure.bench import BenchSettings, bench_forms
    from localq.measure.forms import find_forms
    from localq.measure.report import render_table

    settings = BenchSettings(
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        repetitions=repetitions,
        context_length=context_length,
        threads=threads,
    )
    with ByteBar() as bar:
        forms = find_forms(refs, models_dir, TerminalListener(bar, tell_reused=False))
    report = bench_forms(forms, settings, on_step=say)
    if json:
        emit_json(report.to_json())
    else:
        emit(render_table(report, "csv" if csv else "md" if md else "text"))
