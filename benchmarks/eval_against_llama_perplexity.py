"""`localq eval` against llama-perplexity: the same GGUF files, the same text, figure by figure.

    python benchmarks/eval_against_llama_perplexity.py --llama-perplexity LLAMA_PERPLEXITY --baseline REF \\
        --text FILE [--windows N] [--window N] [--models-dir DIR] REF...

The artifacts must be GGUF. llama-perplexity, built from the same source as llama-cpp-python, gets the settings that
localq computes with: for a float32 file keys and values in float32 and no flash attention, for any other file the
defaults of llama.cpp. It stores the predictions of the baseline in 16 bits, from the largest logit down to 16 below.
The last column is what localq's logits give with these stored predictions instead of exact ones.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localq.gguf_file import read_header
from localq.measure.forms import Form, find_forms
from localq.measure.quality import EvalSettings, evaluate
from localq.measure.reports import FormQuality
from localq.model import open_form, open_gguf_file
from localq.options import LoadOptions
from localq.store.manifest import read_artifact
from localq.tables import format_table

QUANTITIES = {
    "perplexity": (r"Mean PPL\(Q\) +: +(\S+)", 1.0),
    "reference_perplexity": (r"Mean PPL\(base\) +: +(\S+)", 1.0),
    "perplexity_standard_error": (r"Mean PPL\(Q\) +: +\S+ ± +(\S+)", 1.0),
    "log_perplexity_ratio": (r"Mean ln\(PPL\(Q\)/PPL\(base\)\) +: +(\S+)", 1.0),
    "log_perplexity_ratio_standard_error": (r"Mean ln\(PPL\(Q\)/PPL\(base\)\) +: +\S+ ± +(\S+)", 1.0),
    "mean_kl_divergence": (r"Mean +KLD: +(\S+)", 1.0),
    "kl_divergence_standard_error": (r"Mean +KLD: +\S+ ± +(\S+)", 1.0),
    "median_kl_divergence": (r"Median +KLD: +(\S+)", 1.0),
    "p90_kl_divergence": (r"90\.0% +KLD: +(\S+)", 1.0),
    "p99_kl_divergence": (r"99\.0% +KLD: +(\S+)", 1.0),
    "p99_9_kl_divergence": (r"99\.9% +KLD: +(\S+)", 1.0),
    "max_kl_divergence": (r"Maximum +KLD: +(\S+)", 1.0),
    "mean_probability_change": (r"Mean +Δp: +(\S+)", 0.01),
    "rms_probability_change": (r"RMS Δp +: +(\S+)", 0.01),
    "same_top_fraction": (r"Same top p: +(\S+)", 0.01),
    "same_top_standard_error": (r"Same top p: +\S+ ± +(\S+)", 0.01),
}
"""The figures of localq: how llama-perplexity prints each, and in which unit."""


def gguf_path(form: Form) -> Path:
    artifact = None if form.path.is_file() else read_artifact(form.path)
    return artifact.path if artifact else form.path


def ran(command: list[str], path: Path, arguments: list[str]) -> str:
    is_float32 = read_header(path).metadata.get("general.file_type") == 0
    settings = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"] if is_float32 else []
    whole = [*command, "-m", str(path), *settings, *arguments]
    done = subprocess.run(whole, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        sys.exit(f"{' '.join(whole)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def stored_divergence(form: Form, base: Path, threads: int | None) -> dict[str, float]:
    """KL divergences of a form's logits, as localq computes them, from the log-probabilities in `base`."""
    with base.open("rb") as stream:
        assert stream.read(8) == b"_logits_"
        size, vocabulary_size, count = np.fromfile(stream, "<i4", 3).tolist()
        windows = np.fromfile(stream, "<i4", size * count).reshape(count, size)
        options = LoadOptions(size, threads)
        open_one = open_gguf_file if form.path.is_file() else open_form
        found = []
        with open_one(form.path, options) as model:
            begin = model.tokenizer.encode("", add_special_tokens=True)[:1]
            for window in windows.tolist():
                tokens = [*begin, *window[len(begin) :]]
                words, scored = 2 * ((vocabulary_size + 1) // 2) + 4, size - 1 - size // 2
                rows = np.fromfile(stream, "<u2", scored * words).reshape(scored, words)
                done = 0
                for logits in model.engine.logits_in_chunks(tokens, size // 2):
                    found += divergences(rows[done : done + len(logits)], logits)
                    done += len(logits)
    median, p90, p99, p99_9, most = np.percentile(found, [50, 90, 99, 99.9, 100]).tolist()
    return {
        "mean_kl_divergence": float(np.mean(found)),
        "kl_divergence_standard_error": float(np.std(found, ddof=1)) / len(found) ** 0.5,
        "median_kl_divergence": median,
        "p90_kl_divergence": p90,
        "p99_kl_divergence": p99,
        "p99_9_kl_divergence": p99_9,
        "max_kl_divergence": most,
    }


def divergences(rows: np.ndarray, logits: np.ndarray) -> list[float]:
    scale, low = np.ascontiguousarray(rows[:, :4]).view("<f4").T
    found = []
    for index, row in enumerate(logits[: len(rows)].astype(np.float64)):
        log_p = (scale[index] * rows[index, 4 : 4 + len(row)] + low[index]).astype(np.float64)
        log_q = row - row.max() - np.log(np.exp(row - row.max()).sum())
        counted = log_p > -16  # llama-perplexity leaves out what is less likely
        found.append(float((np.exp(log_p) * (log_p - log_q))[counted].sum()))
    return found


def compared(result: FormQuality, printed: str, stored: dict[str, float]) -> list[list[str]]:
    rows = []
    for name, (pattern, unit) in QUANTITIES.items():
        match = re.search(pattern, printed)
        text = match[1].rstrip("%") if match else "nan"
        theirs, ours = float(text) * unit, getattr(result, name)
        digit = unit * 10.0 ** -len(text.partition(".")[2])  # what is printed is rounded to it
        off = max(0.0, abs(ours - theirs) - digit / 2)
        within = off <= (1e-3 if "same_top_fraction" in name else 1e-3 * abs(theirs))
        last = f"{stored[name]:.7g}" if name in stored else ""
        rows.append([result.name, name, f"{ours:.7g}", f"{theirs:.7g}", f"{off:.1e}", "yes" if within else "no", last])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("refs", nargs="+")
    parser.add_argument("--llama-perplexity", required=True)
    parser.add_argument("--baseline", required=True)
    parser.add_argument("--text", required=True, type=Path)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--models-dir", type=Path, default=None)
    given = parser.parse_args()
    settings = EvalSettings(
        baseline=given.baseline,
        text_file=given.text,
        window_tokens=given.window,
        most_windows=given.windows,
        threads=given.threads,
    )
    report = evaluate(given.refs, settings, given.models_dir)
    forms = {form.name: form for form in find_forms([given.baseline, *given.refs], given.models_dir)}
    command = [given.llama_perplexity, *(["-t", str(given.threads)] if given.threads else [])]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        text = ["-f", str(given.text), "-c", str(given.window), "--chunks", str(given.windows)]
        ran(command, gguf_path(forms[report.reference.name]), [*text, "--kl-divergence-base", str(base)])
        for result in report.results:
            form = forms[result.name]
            path = gguf_path(form)
            printed = ran(command, path, [*text, "--kl-divergence-base", str(base), "--kl-divergence"])
            rows += compared(result, printed, stored_divergence(form, base, given.threads))
    header = ["artifact", "quantity", "localq", "llama-perplexity", "off", "within 1e-3", "on its stored baseline"]
    print(format_table(header, rows, 2))
    used = report.settings
    print(f"\nbaseline {report.reference.name}; {used.windows} windows of {used.window_tokens} tokens of {used.text},")
    print(f"{used.positions:,} positions. `off`: beyond the rounding of what is printed; within 1e-3: relative, or 0.1")
    print("points of same top.")


if __name__ == "__main__":
    main()
