"""`localq recipes`: the formats, what they cost in bits, and what they are good for."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from localq.cli.arguments import Json
from localq.cli.output import emit, emit_json
from localq.recipes import DEFAULT_RECIPES, RECIPES
from localq.tables import format_table

_MLX = {
    "mlx-2bit": (2.50, "experiments: quality suffers much"),
    "mlx-mixed-2-6": (3.26, "2 bits, and 6 where quality depends on it most"),
    "mlx-3bit": (3.50, "large models in little memory; quality suffers"),
    "mlx-mixed-3-4": (3.69, "3 bits, and 4 where quality depends on it most"),
    "mlx-mixed-3-6": (4.07, "3 bits, and 6 where quality depends on it most"),
    "mlx-mxfp4": (4.25, "4-bit floats of the OCP MX standard"),
    "mlx-4bit": (4.50, "default for MLX: small and fast, good quality"),
    "mlx-nvfp4": (4.50, "NVIDIA's 4-bit floats"),
    "mlx-mixed-4-6": (4.88, "4 bits, and 6 where quality depends on it most"),
    "mlx-5bit": (5.50, "better than 4 bits where memory allows"),
    "mlx-6bit": (6.50, "close to the original"),
    "mlx-mxfp8": (8.25, "8-bit floats of the OCP MX standard"),
    "mlx-8bit": (8.50, "almost the original, at half its size"),
    "mlx-bf16": (16.00, "not quantized: the original of most models"),
    "mlx-f16": (16.00, "not quantized, for hardware without bf16"),
    "mlx-f32": (32.00, "not quantized, for checks: twice the size of bf16"),
}
_GGUF = {
    "gguf-q1_0": (1.48, "models that were trained for 1 bit per weight"),
    "gguf-iq1_s": (2.00, "very large models in little memory"),
    "gguf-iq1_m": (2.15, "very large models in little memory"),
    "gguf-tq1_0": (2.19, "models that were trained for ternary weights"),
    "gguf-iq2_xxs": (2.38, "large models in little memory; quality suffers"),
    "gguf-tq2_0": (2.52, "models that were trained for ternary weights, fast"),
    "gguf-iq2_xs": (2.59, "large models in little memory; quality suffers"),
    "gguf-q2_0": (2.68, "models that were trained for 2 bits per weight"),
    "gguf-iq2_s": (2.74, "large models in little memory; quality suffers"),
    "gguf-iq2_m": (2.93, "large models in little memory; quality suffers"),
    "gguf-q2_k_s": (2.97, "large models in little memory; quality suffers"),
    "gguf-q2_k": (3.16, "large models in little memory; quality suffers"),
    "gguf-iq3_xxs": (3.25, "large models in little memory"),
    "gguf-iq3_xs": (3.50, "large models in little memory"),
    "gguf-q3_k_s": (3.64, "large models in little memory; fast on CPUs"),
    "gguf-iq3_s": (3.66, "better than q3_k_s, slower on CPUs"),
    "gguf-iq3_m": (3.76, "better than q3_k_s, slower on CPUs"),
    "gguf-q3_k_m": (4.00, "large models in little memory; fast on CPUs"),
    "gguf-q3_k_l": (4.30, "better than q3_k_m, and larger"),
    "gguf-iq4_xs": (4.46, "smallest with the quality of 4 bits"),
    "gguf-q4_0": (4.64, "fast on ARM and AMX; q4_k_m is better"),
    "gguf-q4_k_s": (4.67, "a little smaller than q4_k_m"),
    "gguf-iq4_nl": (4.68, "rows that q4_k_s does not fit; as good"),
    "gguf-q4_k_m": (4.89, "default for GGUF: small and fast, good quality"),
    "gguf-q4_1": (5.10, "older tools; q4_k_m is better"),
    "gguf-q5_k_s": (5.57, "better than 4 bits where memory allows"),
    "gguf-q5_0": (5.57, "older tools; q5_k_s is better"),
    "gguf-q5_k_m": (5.70, "better than 4 bits where memory allows"),
    "gguf-q5_1": (6.04, "older tools; q5_k_m is better"),
    "gguf-q6_k": (6.56, "close to the original"),
    "gguf-q8_0": (8.50, "almost the original, at half its size"),
    "gguf-mxfp4_moe": (8.50, "mixture-of-experts models, at about 4.3 bits"),
    "gguf-bf16": (16.00, "not quantized: the original of most models"),
    "gguf-f16": (16.00, "not quantized, for hardware without bf16"),
    "gguf-f32": (32.00, "not quantized, for checks: twice the size of bf16"),
}
"""From the format to its bits per weight, those of Llama 3.1 8B, and what it is good for."""

_EXPLANATION = """
bits/weight is that of Llama 3.1 8B; the mixed formats differ a little between
models: `localq convert MODEL --to FORMAT --dry-run` prints the size of yours.
Short names are understood where they can mean only one format: q4_k_m, 8bit;
mlx and gguf mean the defaults.

Formats marked * need calibration: `localq calibrate MODEL` measures the model
once, or `localq convert --imatrix FILE` takes a published importance matrix.
A calibrated model has more formats:
  FORMAT-calibrated    as many bytes, rounded so that less is lost, for
                       example gguf-q4_k_m-calibrated, mlx-4bit-calibrated;
                       better for most formats, not for each: compare yours by
                       `localq eval MODEL:FORMAT MODEL:FORMAT-calibrated`
  gguf-4.5bpw          so many bits per weight, each tensor with those that it
  mlx-4.5bpw           needs: the best for its size; 4.5 may be another number"""


@dataclass(frozen=True, slots=True)
class _Row:
    """A format as `--json` writes it."""

    recipe: str
    bits_per_weight: float
    good_for: str
    is_default: bool
    needs_calibration: bool
    is_available: bool


def recipes(json: Json = False) -> None:
    """List the formats: bits per weight, and what they are good for."""
    rows = sorted(_rows(), key=lambda row: (row.recipe.startswith("gguf"), row.bits_per_weight))
    if json:
        emit_json([asdict(row) for row in rows])
        return
    emit(_table(rows))
    emit(_EXPLANATION)


def _rows() -> list[_Row]:
    facts = {**_MLX, **_grouped(), **_GGUF}
    return [
        _Row(name, bits, good_for, name in DEFAULT_RECIPES, RECIPES[name].calibrated, name in RECIPES)
        for name, (bits, good_for) in facts.items()
    ]


def _grouped() -> dict[str, tuple[float, str]]:
    """MLX in groups of another size than 64: each group has a scale and a bias of 16 bits."""
    return {
        f"mlx-{bits}bit-g{size}": (bits + 32 / size, f"as mlx-{bits}bit, {what}")
        for bits in (2, 3, 4, 5, 6, 8)
        for size, what in ((32, "in smaller groups: better, larger"), (128, "in larger groups: smaller, worse"))
    }


def _table(rows: list[_Row]) -> str:
    cells = [[row.recipe + " *" * row.needs_calibration, f"{row.bits_per_weight:.2f}", row.good_for] for row in rows]
    return format_table(["format", "bits/weight", "good for"], cells, ends_with_text=True)
