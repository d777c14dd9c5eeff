"""`localq convert`: make MLX and GGUF artifacts of a checkpoint."""

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
    from localq.conversion.plan import PlannedForm
    from localq.store.manifest import Fallback


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="org/name[@revision], a folder, toy-llama or toy-phi.")
    ],
    to: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help="What to convert to (repeatable; default: mlx-4bit and gguf-q4_k_m).",
        ),
    ] = None,
    models_dir: ModelsDir = None,
    pre_tokenizer: Annotated[
        str | None,
        typer.Option("--pre-tokenizer", metavar="NAME", help="llama.cpp's rule to split text by (GGUF)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make existing artifacts again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sizes and paths; write and download nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Convert a checkpoint to MLX and GGUF.

    Artifacts of earlier runs are found, and not made again.

    \b
    Formats (mlx-Nbit also as mlx-Nbit-g32 and mlx-Nbit-g128):
      mlx-2bit mlx-3bit mlx-4bit mlx-5bit mlx-6bit mlx-8bit
      mlx-mixed-2-6 mlx-mixed-3-4 mlx-mixed-3-6 mlx-mixed-4-6
      mlx-mxfp4 mlx-mxfp8 mlx-nvfp4 mlx-bf16 mlx-f16 mlx-f32
      gguf-q4_0 gguf-q4_1 gguf-q5_0 gguf-q5_1 gguf-q8_0 gguf-q1_0 gguf-q2_0
      gguf-q2_k gguf-q3_k_s gguf-q3_k_m gguf-q3_k_l gguf-q4_k_s gguf-q4_k_m
      gguf-q5_k_s gguf-q5_k_m gguf-q6_k gguf-iq3_s gguf-iq3_m gguf-iq4_xs
      gguf-iq4_nl gguf-tq1_0 gguf-tq2_0 gguf-mxfp4_moe
      gguf-bf16 gguf-f16 gguf-f32
    """
    from localq.backends import has_backend
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.conversion import convert as conversion
    from localq.conversion.plan import Request

    request = Request(source, to or None, models_dir, force, pre_tokenizer)
    if not to and not has_backend("mlx"):
        say("MLX is not installed on this platform: making only GGUF")
    if dry_run:
        _show_plan(conversion.dry_run(request), json)
        return
    with ByteBar() as bar:
        listener = TerminalListener(bar, tell_reused=True)
        made = conversion.make_forms(request, listener)
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
    emit(format_table(["artifact", "size", "bits/weight", "made in", "path"], rows, ends_with_text=True))
    for item in made:
        _say_fallbacks(item.artifact.name, item.artifact.manifest.fallbacks)


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
    emit(format_table(["artifact", "weights", "bits/weight", "state", "path"], rows, ends_with_text=True))
    for form in planned:
        _say_fallbacks(f"{form.model}:{form.recipe.name}", form.fallbacks)


def _planned_record(form: PlannedForm) -> dict[str, Any]:
    """The keys of `_record`. `bytes` counts only the weights: the other files are not written yet."""
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


def _say_fallbacks(name: str, fallbacks: Sequence[Fallback]) -> None:
    if fallbacks:
        say(f"note: {name}: {describe_fallbacks(fallbacks)}")
