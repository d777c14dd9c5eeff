"""`localq bench`: tokens per second per form on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localq.cli import arguments as flags
from localq.cli.output import emit, emit_json, say, stderr_is_terminal
from localq.errors import OptionError

if TYPE_CHECKING:
    from localq.reference import ModelReference
    from localq.store.manifest import Artifact


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
    from localq.measure.bench import BenchSettings, bench_forms
    from localq.measure.report import render_table

    settings = BenchSettings(
        prompt_tokens=prompt_tokens,
        generated_tokens=generated_tokens,
        repetitions=repetitions,
        context_length=context_length,
        threads=threads,
    )
    report = bench_forms(find_forms(refs, models_dir), settings, on_step=say if stderr_is_terminal() else None)
    if json:
        emit_json(report.to_json())
    else:
        emit(render_table(report, "csv" if csv else "md" if md else "text"))


def find_forms(refs: list[str], models_dir: Path | None) -> list[Artifact]:
    """The artifacts that references mean, made first where they are not there."""
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.convert.conversion import convert
    from localq.reference import parse_reference

    artifacts: dict[Path, Artifact] = {}
    with ByteBar() as bar:
        for text in refs:
            reference = parse_reference(text)
            listener = TerminalListener(bar, tell_reused=False)
            for converted in convert(
                reference.without_recipe(), _recipes(reference), models_dir=models_dir, listener=listener
            ):
                artifacts[converted.artifact.folder] = converted.artifact
    return list(artifacts.values())


def _recipes(reference: ModelReference) -> list[str]:
    from localq.engines.availability import has_backend
    from localq.recipes import DEFAULT_RECIPES, RECIPES

    if reference.recipe is not None:
        return [reference.recipe.name]
    return [name for name in DEFAULT_RECIPES if has_backend(RECIPES[name].format)]
