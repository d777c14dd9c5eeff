"""`localq calibrate`: measure which weights of a model matter most."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from localq.cli.arguments import Json, ModelsDir, Threads
from localq.cli.completion import complete_reference
from localq.cli.output import emit, emit_json, say

_Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="org/name[@revision], a folder, toy-llama or toy-phi.", autocompletion=complete_reference
    ),
]
_Text = Annotated[
    list[Path] | None,
    typer.Option(
        "--text",
        metavar="FILE",
        help="Text in UTF-8 to measure on (repeatable; default: localq's own, and the model's).",
    ),
]
_Tokens = Annotated[int | None, typer.Option("--tokens", metavar="N", help="Tokens of the text (default: 16384).")]
_Force = Annotated[bool, typer.Option("--force", help="Measure again what was measured before.")]


def calibrate(
    model: _Model,
    text: _Text = None,
    tokens: _Tokens = None,
    threads: Threads = None,
    models_dir: ModelsDir = None,
    force: _Force = False,
    json: Json = False,
) -> None:
    """Measure which weights of a model matter most.

    Calibrated formats (gguf-q4_k_m-calibrated, mlx-4bit-calibrated) and formats
    with a budget (gguf-4.5bpw, mlx-4.5bpw) need it. One calibration serves all
    formats of a model.

    Without --text the model is measured on localq's own text, and a small model
    also on text that it writes itself. Don't measure quality on the same text
    later.

    First the model computes up to 16,384 tokens, which say how much each column
    of its weights matters. Then it computes 256 tokens (a small model up to
    2,048) for each tensor, which say how far its predictions move when that
    tensor alone has 3 bits.

    It takes as much memory and disk as the model has in bfloat16, and up to
    1 GB of memory more; afterwards only the figures stay on the disk. A run
    that was stopped goes on in the next one.
    """
    from localq.calibrating.calibrate import CalibrationSettings, calibrate_model
    from localq.cli.calibrating import TerminalCalibrationListener
    from localq.cli.calibration import calibration_record, calibration_text
    from localq.cli.progress import ByteBar

    chosen: dict[str, Any] = {} if tokens is None else {"tokens": tokens}
    settings = CalibrationSettings(texts=tuple(text or ()), threads=threads, force=force, **chosen)
    with ByteBar() as bar, ByteBar(counts_bytes=False) as steps:
        done = calibrate_model(model, settings, models_dir, TerminalCalibrationListener(bar, steps))
    found = done.calibration
    if json:
        emit_json({**calibration_record(found), "reused": done.reused})
        return
    if done.reused:
        say(f"{found.model} was calibrated before; --force measures it again")
    emit(calibration_text(found))
