"""Compare the importance of columns with llama-imatrix's own, on toy-llama, which llama.cpp tokenizes as localq does.

    python -m tests.calibrating.compare_imatrix LLAMA_IMATRIX

LLAMA_IMATRIX is the program, built from llama.cpp's source. Not part of the suite: it needs that program. Both compute
the same windows of 512 tokens of the same file in float32; what differs is that llama-imatrix adds in float32, and that
its engine may be built otherwise. Counts must be equal and sums agree to 1e-3; what was found is printed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np

from localq.calibrating.columns import ColumnSums
from localq.calibrating.texts import cut, read_texts
from localq.calibration.importance import read_importance
from localq.conversion.convert import convert
from localq.demo.questions import read_held_out_text
from localq.engines.llamacpp_observer import ObservedEngine
from localq.options import LoadOptions
from localq.text.tokenizer import load_tokenizer


def compare(program: str, model: str, folder: Path) -> None:
    """Raises AssertionError where they differ."""
    (artifact,) = convert(model, ["gguf-f32"], models_dir=folder)
    text, file = folder / "text.txt", folder / f"{model}.gguf"
    text.write_text(read_held_out_text(), encoding="utf-8")
    arguments = ["-m", artifact.path, "-f", text, "-o", file, "-c", "512", "--parse-special", "-fa", "off"]
    arguments += ["-ctk", "f32", "-ctv", "f32"]
    subprocess.run([program, *map(str, arguments)], check=True, capture_output=True)
    expected = read_importance(file)
    windows = cut(read_texts([text]), load_tokenizer(artifact.folder), 512, (1 << 20, 512)).windows
    columns = ColumnSums()
    with closing(ObservedEngine(artifact.path, LoadOptions(), 512)) as engine:
        for window in windows:
            columns.compute(engine, window)
    found = columns.importance([str(text)], 512)
    assert found.sums.keys() == expected.sums.keys()
    assert (found.chunk_count, found.chunk_tokens) == (expected.chunk_count, expected.chunk_tokens)
    largest = 0.0
    for name, sums in expected.sums.items():
        assert np.array_equal(found.counts[name], expected.counts[name]), name
        largest = max(largest, float(np.abs(found.sums[name] / sums - 1).max()))
    sys.stdout.write(
        f"{model}: {len(windows)} windows, {len(expected.sums)} tensors, largest difference {largest:.1e}\n"
    )
    assert largest < 1e-3


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        compare(sys.argv[1], "toy-llama", Path(temporary))
