"""Time and memory of conversion, compared with the tools of llama.cpp and mlx_lm.

    python benchmarks/conversion.py CHECKPOINT --llama-cpp LLAMA_CPP_SOURCE [--converter-python PYTHON] [-r 3] [--cold]

CHECKPOINT is a folder in Hugging Face format. LLAMA_CPP_SOURCE is llama.cpp's source folder, for its
`convert_hf_to_gguf.py`; PYTHON is an interpreter that has what that script needs (torch, transformers, gguf).
Without --llama-cpp only MLX is compared. --form chooses what is made (repeatable): any GGUF recipe, mlx-4bit, or both,
which is localq making gguf-q4_k_m and mlx-4bit in one pass, against all the other tools. With --cold (Linux) the
checkpoint is dropped from the system's cache before each run. The tools take turns, each run is a process of its own,
and the ratios are taken turn by turn. Seconds of the processor hold also where other work slows all of them down.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from localq.recipes import GgufRecipe, parse_recipe

_QUANTIZE = """
import ctypes, sys
from llama_cpp import llama_cpp as api
parameters = api.llama_model_quantize_default_params()
parameters.ftype = int(sys.argv[3])
sys.exit(api.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(parameters)))
"""


@dataclass(frozen=True)
class Run:
    """One conversion, all its processes together."""

    wall_seconds: float
    cpu_seconds: float
    peak_resident_bytes: int
    written_bytes: int
    """Everything that the tool wrote to the disk, with intermediate files."""
    read_bytes: int
    """From the disk; reads from the system's cache are not counted."""


def drop_from_cache(checkpoint: Path) -> None:
    """Drop the files' contents from the system's cache."""
    os.sync()
    for file in checkpoint.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def run(commands: list[list[str]], folder: Path, environment: dict[str, str] | None = None) -> Run:
    """Run commands one after the other; the memory is that of the largest process."""
    started = time.perf_counter()
    cpu_seconds, peak, read = 0.0, 0, 0
    for command in commands:
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environment or {})})
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                log.seek(0)
                sys.exit(f"{' '.join(command)} failed:\n{log.read().decode(errors='replace')[-2000:]}")
        cpu_seconds += usage.ru_utime + usage.ru_stime
        read += usage.ru_inblock * 512
        peak = max(peak, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
    seconds = time.perf_counter() - started
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    shutil.rmtree(folder)
    folder.mkdir()
    return Run(seconds, cpu_seconds, peak, written, read)


def tools(arguments: argparse.Namespace, folder: Path, form: str) -> list[tuple[str, list[list[str]]]]:
    """The tools that make a form: (name, commands), localq first."""
    checkpoint, python = str(arguments.checkpoint), sys.executable
    recipes = ["gguf-q4_k_m", "mlx-4bit"] if form == "both" else [form]
    own = [python, "-m", "localq", "convert", checkpoint, "--models-dir", str(folder)]
    peers, names = [], []
    for recipe in map(parse_recipe, recipes):
        own += ["--to", recipe.name]
        if isinstance(recipe, GgufRecipe):
            script, whole, made = arguments.llama_cpp / "convert_hf_to_gguf.py", folder / "bf16.gguf", folder / "q.gguf"
            convert = [arguments.converter_python, script, checkpoint, "--outtype", "bf16", "--outfile", whole]
            peers += [convert, [python, "-c", _QUANTIZE, whole, made, recipe.file_type_number]]
            names.append("converter + quantizer")
        else:
            peers.append(
                [python, "-m", "mlx_lm", "convert", "--hf-path", checkpoint, "--mlx-path", folder / "mlx", "-q"]
            )
            names.append("mlx_lm.convert")
    return [("localq", [own]), (", ".join(names), [[str(word) for word in command] for command in peers])]


def median_and_range(values: list[float], form: str) -> str:
    """`median (least to most)`."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--converter-python", default=sys.executable)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--form", action="append", help="default: gguf-q4_k_m, mlx-4bit and both")
    arguments = parser.parse_args()
    environment = {"PYTHONPATH": str(arguments.llama_cpp / "gguf-py")} if arguments.llama_cpp else {}
    default_forms = ["gguf-q4_k_m", "mlx-4bit", "both"] if arguments.llama_cpp else ["mlx-4bit"]
    print(
        "| format | tool | seconds | of the peer's time | processor seconds | peak resident MB | written MB | read MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=arguments.checkpoint.parent) as scratch:
        for form in arguments.form or default_forms:
            contenders = tools(arguments, Path(scratch), form)
            runs: dict[str, list[Run]] = {name: [] for name, _ in contenders}
            for _ in range(arguments.repetitions):
                for name, commands in contenders:
                    if arguments.cold:
                        drop_from_cache(arguments.checkpoint)
                    peer = environment if name.startswith("converter") else None
                    runs[name].append(run(commands, Path(scratch), peer))
            for name, measured in runs.items():
                peers = runs[contenders[1][0]]
                ratios = [own.wall_seconds / peer.wall_seconds for own, peer in zip(measured, peers, strict=True)]
                print(
                    f"| {form} | {name} | {median_and_range([r.wall_seconds for r in measured], '.1f')} "
                    f"| {median_and_range(ratios, '.2f')} "
                    f"| {statistics.median(r.cpu_seconds for r in measured):.1f} "
                    f"| {max(r.peak_resident_bytes for r in measured) / 1e6:,.0f} "
                    f"| {measured[0].written_bytes / 1e6:,.0f} "
                    f"| {max(r.read_bytes for r in measured) / 1e6:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
