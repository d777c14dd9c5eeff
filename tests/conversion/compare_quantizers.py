"""Compares localq's kernels with ggml on random weights of every kind, for as many blocks as asked.

    python -m tests.conversion.compare_quantizers --blocks 1000000 [--seed 1]

kquants.c is compiled here, for every vector width that this processor has, with `cc` (or CC) and the flags of setup.py;
KQUANTS_FLAGS adds some. Prints how many blocks were compared and how many differ, by type, width and importance.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from localq.checkpoint.tensors import to_float32
from localq.conversion import ggml
from localq.conversion.compiled import Compiled
from localq.conversion.quantizer import Kernels, kinds_of_weights

TYPES = ("q8_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs")
COMPILER = shlex.split(os.environ.get("CC", "cc"))
HAS_COMPILER = shutil.which(COMPILER[0]) is not None
WIDTHS = {4: [], 8: ["-mavx2"], 16: ["-mavx512f"]} if platform.machine() == "x86_64" else {4: []}


@cache
def compiled(lanes: int) -> Kernels:
    """Kernels for one vector width, in a folder that lasts as long as the process."""
    source = Path(__file__).parents[2] / "localq" / "conversion" / "kquants.c"
    folder = Path(tempfile.mkdtemp())
    flags = ["-O2", "-ffp-contract=off", "-fwrapv", "-Wall", "-Werror", "-Wno-psabi", *WIDTHS[lanes]]
    flags += shlex.split(os.environ.get("KQUANTS_FLAGS", ""))
    library = folder / f"kquants_{lanes}.so"
    subprocess.run([*COMPILER, "-shared", "-fPIC", f"-DLANES={lanes}", *flags, source, "-o", library], check=True)
    return Kernels.of(Compiled(library, lanes, ctypes.CDLL(str(library))))


def widths_here() -> list[int]:
    """Those that this processor has instructions for."""
    return [lanes for lanes in WIDTHS if lanes <= compiled(4).library.localq_lanes()]


def random_bits(generator: np.random.Generator, rows: int) -> np.ndarray:
    """Float32 of any exponent, infinities and NaN as well."""
    return generator.integers(0, 2**32, (rows, 512), dtype=np.uint32).view(np.float32)


def random_importance(generator: np.random.Generator, columns: int) -> np.ndarray:
    """A row of an importance matrix: wide, with zeros."""
    importance = generator.lognormal(0, generator.uniform(0, 5), columns).astype(np.float32)
    importance[generator.random(columns) < generator.choice([0, 0.3])] = 0
    return importance


def differing_blocks(kernels: Kernels, type_number: int, rows: np.ndarray, importance: np.ndarray | None) -> int:
    """How many blocks of (rows, columns) are not as ggml makes them."""
    own = kernels.quantize(type_number, rows, importance)
    assert own is not None
    expected = ggml.quantize_rows(type_number, to_float32(rows), importance)
    blocks = rows.size // ggml.block_weights(type_number)
    return int((own.reshape(blocks, -1) != expected.reshape(blocks, -1)).any(axis=1).sum())


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1_000_000, help="of each type, width and importance, at least")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    total = wrong = 0
    for name in TYPES:
        number = ggml.type_number(name)
        for lanes in widths_here():
            for weighted in (False, True):
                generator = np.random.default_rng([arguments.seed, number, lanes, weighted])
                compared = differing = 0
                while compared < arguments.blocks:
                    inputs: list[Any] = [*kinds_of_weights(generator, 61), random_bits(generator, 61)]
                    for rows in inputs:
                        importance = random_importance(generator, 512) if weighted else None
                        differing += differing_blocks(compiled(lanes), number, rows, importance)
                        compared += rows.size // ggml.block_weights(number)
                sys.stdout.write(
                    f"{name:7} {lanes:2} lanes, importance {weighted!s:5}: {compared:,} blocks, {differing} differ\n"
                )
                total, wrong = total + compared, wrong + differing
    sys.stdout.write(f"{total:,} blocks, {wrong} differ\n")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
