"""Which formats an importance matrix makes better: each format of a checkpoint, without and with one.

    python benchmarks/calibrated_formats.py CHECKPOINT --text FILE [--imatrix FILE] [--window N] [--windows N] \\
        [--models-dir DIR] [--to FORMAT]...

The matrix is the model's calibration (`localq calibrate CHECKPOINT`) unless a file is given. FORMAT is a plain one,
such as gguf-q3_k_m; by default it is every GGUF file type that uses a matrix, and those that need one. The text must
be another one than the matrix was measured on, best of another source. KL divergence is that of `localq eval`; the
difference is taken window by window, and a format is called better or worse only where its interval leaves out 0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localq.conversion.convert import convert
from localq.measure.quality import EvalSettings, evaluate
from localq.measure.reports import EvalReport, FormQuality
from localq.recipes import CALIBRATED, RECIPES, GgufRecipe, exact_recipe
from localq.store.manifest import Artifact


def formats(wanted: list[str] | None) -> list[str]:
    """Plain ones with their calibrated ones, and those that need a matrix."""
    names = wanted or [name for name, recipe in RECIPES.items() if isinstance(recipe, GgufRecipe)]
    pairs = [name for plain in names if exact_recipe(plain + CALIBRATED) for name in (plain, plain + CALIBRATED)]
    return pairs + [name for name in names if RECIPES[name].calibrated]


def figure(result: FormQuality | None) -> str:
    if result is None:
        return ""
    error = result.kl_divergence_standard_error
    return f"{result.mean_kl_divergence:.6f}" + (f" ± {error:.6f}" if error is not None else "")


def change(report: EvalReport, plain: FormQuality, calibrated: FormQuality) -> tuple[str, str, str]:
    """Relative change, the interval of the difference, and what may be said of it."""
    share = calibrated.mean_kl_divergence / plain.mean_kl_divergence - 1
    for comparison in report.comparisons:
        if set(comparison.pair) == {plain.name, calibrated.name}:
            low, high = comparison.difference.low, comparison.difference.high
            if comparison.nearer == calibrated.name:
                low, high = -high, -low
            verdict = ("better" if share < 0 else "worse") if comparison.differs else "not told apart"
            return f"{share:+.0%}", f"{low:+.6f} to {high:+.6f}", verdict
    return f"{share:+.0%}", "", "one window"


def table(report: EvalReport, made: list[Artifact]) -> list[str]:
    results = {result.recipe: result for result in report.results}
    nbytes = {artifact.manifest.recipe: artifact.manifest.weight_bytes for artifact in made}
    lines = [
        "| format | weight bytes | with matrix | KLD | KLD with matrix | change | difference, 95% interval | |",
        "|---|---:|---:|---:|---:|---:|---|---|",
    ]
    for name, result in sorted(results.items(), key=lambda item: nbytes[item[0].removesuffix(CALIBRATED)]):
        with_matrix = results.get(name + CALIBRATED)
        if name.endswith(CALIBRATED):
            continue
        if with_matrix is None:
            cells = [name, "", f"{nbytes[name]:,}", "", figure(result), "", "", "needs a matrix"]
        else:
            sizes = [f"{nbytes[name]:,}", f"{nbytes[with_matrix.recipe]:,}"]
            cells = [name, *sizes, figure(result), figure(with_matrix), *change(report, result, with_matrix)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--imatrix", type=Path, default=None)
    parser.add_argument("--to", action="append")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--models-dir", type=Path, default=None)
    given = parser.parse_args()
    names = formats(given.to)
    made = convert(given.checkpoint, names, models_dir=given.models_dir, imatrix=given.imatrix)
    settings = EvalSettings(text_file=given.text, window_tokens=given.window, most_windows=given.windows)
    report = evaluate([f"{given.checkpoint}:{name}" for name in names], settings, given.models_dir)
    used, reference = report.settings, report.reference
    print("\n".join(table(report, made)))
    record = next(artifact.manifest.importance for artifact in made if artifact.manifest.importance)
    print(f"\n{reference.model}, {made[0].manifest.parameters:,} parameters, compared with {reference.recipe} of")
    print(f"perplexity {reference.perplexity:.3f}; {used.windows} windows of {used.window_tokens} tokens, in all")
    print(f"{used.positions:,} positions, of {used.text}. Matrix: {record.file} ({', '.join(record.datasets)}).")
    for warning in report.warnings:
        print(f"Warning: {warning}")


if __name__ == "__main__":
    main()
