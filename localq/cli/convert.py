"""`localq convert`: make MLX and GGUF forms of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli.arguments import Json, ModelsDir
from localq.cli.fallbacks import describe_fallbacks
from localq.cli.output import emit, emit_json, say
from localq.tables import format_bytes, format_table

if TYPE_CHECKING:
    from localq.conversion.convert import Converted
    from localq.conversion.survey import PlannedForm
    from localq.store.manifest import Fallback


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="org/name[@revision], a checkpoint folder, toy-llama or toy-phi.")
    ],
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="RECIPE",
            help="mlx-4bit, mlx-8bit, mlx-bf16, mlx-f32 ..., gguf-q4_k_m, gguf-q4_0, gguf-q8_0, gguf-bf16 ... "
            "(repeatable; default: mlx-4bit and gguf-q4_k_m).",
        ),
    ] = None,
    models_dir: ModelsDir = None,
    pre_tokenizer: Annotated[
        str | None,
        typer.Option("--pre-tokenizer", metavar="NAME", help="llama.cpp's rule to split text by, for gguf forms."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make forms anew that are there already.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell sizes and places; write and download nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Convert a checkpoint; what an earlier run made is found again."""
    from localq.backends import has_backend
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.conversion import convert as conversion

    recipes = to or None  # the library knows which forms the platform and the model's family have
    if not to and not has_backend("mlx"):
        say("MLX does not run on this platform: making the GGUF form alone")
    if dry_run:
        planned = conversion.plan_conversion(
            source, recipes, models_dir=models_dir, force=force, pre_tokenizer=pre_tokenizer
        )
        _show_plan(planned, json)
        return
    with ByteBar() as bar:
        listener = TerminalListener(bar, tell_reused=True)
        made = conversion.make_forms(
            source, recipes, models_dir=models_dir, force=force, pre_tokenizer=pre_tokenizer, listener=listener
        )
    _show_converted(made, json)


def _show_converted(made: list[Converted], json: bool) -> None:
    if json:
        emit_json([_record(converted) for converted in made])
        return
    rows = [
        [
            item.artifact.name,
            format_bytes(item.artifact.manifest.bytes),
            f"{item.artifact.manifest.bits_per_weight:.2f}",
            "there already" if item.reused else f"{item.seconds:.1f} s",
            str(item.artifact.path),
        ]
        for item in made
    ]
    emit(format_table(["form", "size", "bits/weight", "made in", "path"], rows, ends_with_text=True))
    for item in made:
        _tell_fallbacks(item.artifact.name, item.artifact.manifest.fallbacks)


def _record(converted: Converted) -> dict[str, Any]:
    manifest = converted.artifact.manifest
    return {
        "model": manifest.model,
        "recipe": manifest.recipe,
        "path": str(converted.artifact.path),
        "bytes": manifest.bytes,
        "parameters": manifest.parameters,
        "bits_per_weight": manifest.bits_per_weight,
        "seconds": round(converted.seconds, 3),
        "reused": converted.reused,
        "fallbacks": [asdict(fallback) for fallback in manifest.fallbacks],
    }


def _show_plan(planned: list[PlannedForm], json: bool) -> None:
    if json:
        emit_json([_planned_record(form) for form in planned])
        return
    rows = [
        [
            f"{form.model}:{form.recipe.name}",
            format_bytes(form.weight_bytes),
            f"{form.bits_per_weight:.2f}",
            "there already" if form.reused else "to be made",
            str(form.path),
        ]
        for form in planned
    ]
    emit(format_table(["form", "weights", "bits/weight", "state", "path"], rows, ends_with_text=True))
    for form in planned:
        _tell_fallbacks(f"{form.model}:{form.recipe.name}", form.fallbacks)


def _planned_record(form: PlannedForm) -> dict[str, Any]:
    """The keys of `_record`. `bytes` are those of the weights: what comes beside them is known when it is written."""
    return {
        "model": form.model,
        "recipe": form.recipe.name,
        "path": str(form.path),
        "bytes": form.weight_bytes,
        "parameters": form.parameters,
        "bits_per_weight": form.bits_per_weight,
        "seconds": 0 if form.reused else None,
        "reused": form.reused,
        "fallbacks": [asdict(fallback) for fallback in form.fallbacks],
    }


def _tell_fallbacks(name: str, fallbacks: Sequence[Fallback]) -> None:
    if fallbacks:
        say(f"note: {name}: {describe_fallbacks(fallbacks)}")
