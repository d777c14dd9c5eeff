"""`localq convert`: make MLX and GGUF artifacts of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli.arguments import Json, ModelsDir
from localq.cli.completion import complete_recipe, complete_reference
from localq.cli.fallbacks import describe_fallbacks
from localq.cli.output import emit, emit_json, say
from localq.tables import format_bytes, format_table

if TYPE_CHECKING:
    from localq.conversion.convert import Converted
    from localq.conversion.plan import PlannedForm, Request
    from localq.conversion.predictions import Prediction


_NEAR = 0.995
"""Of a budget: what a format has at least, where the sizes of the tensors make it possible."""

_Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="org/name[@revision], a folder, toy-llama or toy-phi.",
        autocompletion=complete_reference,
    ),
]
_To = Annotated[
    list[str] | None,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="What to convert to (repeatable; default: mlx-4bit and gguf-q4_k_m).",
        autocompletion=complete_recipe,
    ),
]
_PreTokenizer = Annotated[
    str | None, typer.Option("--pre-tokenizer", metavar="NAME", help="llama.cpp's rule to split text by (GGUF).")
]
_Fit = Annotated[
    str | None,
    typer.Option(
        "--fit",
        metavar="LIMIT",
        help="Largest format that fits: a file size (2.2GB), memory, or memory=TOKENS with that context. "
        "--to mlx or --to gguf chooses one; the model must be calibrated.",
    ),
]
_Imatrix = Annotated[
    Path | None,
    typer.Option(
        "--imatrix", metavar="FILE", help="Importance matrix for calibrated formats, instead of the calibration's."
    ),
]
_Force = Annotated[bool, typer.Option("--force", help="Make existing artifacts again.")]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Print sizes and paths; write and download nothing.")]


def convert(
    source: _Source,
    to: _To = None,
    fit: _Fit = None,
    models_dir: ModelsDir = None,
    imatrix: _Imatrix = None,
    pre_tokenizer: _PreTokenizer = None,
    force: _Force = False,
    dry_run: _DryRun = False,
    json: Json = False,
) -> None:
    """Convert a checkpoint to MLX and GGUF.

    Artifacts of earlier runs are found, and not made again.

    \b
    Formats (mlx-Nbit also as mlx-Nbit-g32 and mlx-Nbit-g128; `localq recipes`
    says what they are good for):
      mlx-2bit mlx-3bit mlx-4bit mlx-5bit mlx-6bit mlx-8bit
      mlx-mixed-2-6 mlx-mixed-3-4 mlx-mixed-3-6 mlx-mixed-4-6
      mlx-mxfp4 mlx-mxfp8 mlx-nvfp4 mlx-bf16 mlx-f16 mlx-f32
      gguf-q4_0 gguf-q4_1 gguf-q5_0 gguf-q5_1 gguf-q8_0 gguf-q1_0 gguf-q2_0
      gguf-q2_k gguf-q3_k_s gguf-q3_k_m gguf-q3_k_l gguf-q4_k_s gguf-q4_k_m
      gguf-q5_k_s gguf-q5_k_m gguf-q6_k gguf-iq3_s gguf-iq3_m gguf-iq4_xs
      gguf-iq4_nl gguf-tq1_0 gguf-tq2_0 gguf-mxfp4_moe
      gguf-bf16 gguf-f16 gguf-f32
    With `localq calibrate` or --imatrix also FORMAT-calibrated, for example
    gguf-q4_k_m-calibrated, and llama.cpp's smallest:
      gguf-iq1_s gguf-iq1_m gguf-iq2_xxs gguf-iq2_xs gguf-iq2_s gguf-iq2_m
      gguf-iq3_xxs gguf-iq3_xs gguf-q2_k_s
    After `localq calibrate`, also bits per weight: mlx-4.5bpw gguf-3.75bpw
    """
    from localq.backends import has_backend
    from localq.conversion.plan import Request

    request = Request(source, to or None, models_dir, force, pre_tokenizer, imatrix)
    if not to and not has_backend("mlx"):
        say("MLX is not installed on this platform: making only GGUF")
    if fit is not None:
        request = _fitted(request, fit, dry_run)
    if dry_run:
        _show_plans(request, json)
    else:
        _make(request, json)


def _show_plans(request: Request, json: bool) -> None:
    from localq.checkpoint.source import cached_checkpoint
    from localq.conversion.convert import dry_run
    from localq.conversion.predictions import predictions

    rows = [_Row.planned(form) for form in dry_run(request)]
    _show(rows, ("weights", "state"), json, predictions(request, cached_checkpoint))


def _make(request: Request, json: bool) -> None:
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.conversion.convert import make_forms

    with ByteBar() as bar:
        made = make_forms(request, TerminalListener(bar, tell_reused=True))
    _show([_Row.made(converted) for converted in made], ("size", "made in"), json)


def _fitted(request: Request, fit: str, dry_run: bool) -> Request:
    """The same with the formats that fit."""
    from localq.checkpoint.source import cached_checkpoint, resolve_checkpoint
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.conversion.fit import Limit, fitting_recipes

    limit = Limit.parse(fit)
    with ByteBar() as bar:
        on_download = TerminalListener(bar, tell_reused=False).on_download
        opened = cached_checkpoint if dry_run else lambda model: resolve_checkpoint(model, on_download)
        recipes = fitting_recipes(request, limit, opened)
    for recipe in recipes:
        say(f"{recipe.name} is the largest that fits {fit}")
    return replace(request, recipes=recipes)


@dataclass(frozen=True, slots=True)
class _Row:
    """What is printed of one artifact."""

    form: PlannedForm
    nbytes: int
    seconds: float | None
    state: str

    @classmethod
    def planned(cls, form: PlannedForm) -> _Row:
        """Only the bytes of the weights: the other files are not written yet."""
        seconds, state = (0, "there already") if form.reused else (None, "to be made")
        return cls(form, form.weight_bytes, seconds, state)

    @classmethod
    def made(cls, converted: Converted) -> _Row:
        """With the bytes of all files."""
        state = "there already" if converted.reused else f"{converted.seconds:.1f} s"
        return cls(converted.form, converted.artifact.manifest.bytes, round(converted.seconds, 3), state)

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "model": self.form.model,
            "recipe": self.form.recipe.name,
            "path": str(self.form.path),
            "bytes": self.nbytes,
            "parameters": self.form.parameters,
            "bits_per_weight": self.form.bits_per_weight,
            "seconds": self.seconds,
            "reused": self.form.reused,
            "fallbacks": [asdict(fallback) for fallback in self.form.fallbacks],
            "predicted_kl_divergence": self.form.predicted_kl_divergence,
        }


def _predicted_table(predicted: Sequence[Prediction], wanted: Sequence[PlannedForm]) -> str:
    """The formats of a dry run, marked, among those that they are compared with."""
    sizes = {one.recipe: (one.bytes, one.bits_per_weight, one.predicted_kl_divergence) for one in predicted}
    for form in wanted:
        if form.predicted_kl_divergence is not None:
            sizes[form.recipe.name] = form.weight_bytes, form.bits_per_weight, form.predicted_kl_divergence
    names = {form.recipe.name for form in wanted}
    cells = [
        [name + " *" * (name in names), format_bytes(nbytes), f"{bits:.2f}", f"{damage:.6f}"]
        for name, (nbytes, bits, damage) in sorted(
            sizes.items(), key=lambda item: (item[0].startswith("gguf"), item[1])
        )
    ]
    title = "\nPredicted mean KL divergence from the original, in nats, by the model's calibration:\n\n"
    return title + format_table(["format", "weights", "bits/weight", "predicted KLD"], cells)


def _show(rows: list[_Row], titles: tuple[str, str], json: bool, predicted: Sequence[Prediction] | None = None) -> None:
    """Print a table, in which `titles` name the columns of bytes and state, or JSON.

    `predicted` are the formats that a dry run is compared with.
    """
    if json:
        compared = None if predicted is None else [asdict(one) for one in predicted]
        emit_json([row.record() | {"predictions": compared} for row in rows])
        return
    cells = [
        [row.form.name, format_bytes(row.nbytes), f"{row.form.bits_per_weight:.2f}", row.state, str(row.form.path)]
        for row in rows
    ]
    emit(format_table(["artifact", titles[0], "bits/weight", titles[1], "path"], cells, ends_with_text=True))
    if predicted:
        emit(_predicted_table(predicted, [row.form for row in rows]))
    for row in rows:
        budget = row.form.recipe.budget
        if budget is not None and row.form.bits_per_weight < _NEAR * budget:
            say(f"note: {row.form.name}: the sizes of this model's tensors allow nothing closer to its budget")
        if row.form.fallbacks:
            say(f"note: {row.form.name}: {describe_fallbacks(row.form.fallbacks)}")
