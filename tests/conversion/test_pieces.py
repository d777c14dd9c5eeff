"""Several forms in one pass: what is read when, and what memory holds."""

from __future__ import annotations

import itertools
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from localq.checkpoint import tensors
from localq.checkpoint.weights import Weights
from localq.conversion import pieces
from localq.conversion.convert import convert
from localq.errors import CheckpointError
from tests.tiny_checkpoints import CONFIGS, random_tensors, write_checkpoint, write_safetensors

FORMS = ["mlx-4bit", "gguf-q4_k_m", "gguf-q8_0"]


def test_forms_made_together_equal_forms_made_one_by_one(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3.2")
    together = convert(str(folder), FORMS, models_dir=tmp_path / "together")
    for artifact in together:
        (alone,) = convert(str(folder), [artifact.recipe], models_dir=tmp_path / "alone")
        assert {f.name: f.sha256 for f in alone.manifest.files} == {f.name: f.sha256 for f in artifact.manifest.files}


def test_each_stretch_of_the_checkpoint_is_read_for_all_forms_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the disk delivers it once: the next forms find it in the system's cache."""
    monkeypatch.setattr(tensors, "PIECE_ELEMENTS", 4096)
    folder = write_checkpoint(tmp_path / "model", "llama-3.2")
    reads: list[tuple[str, int]] = []
    plain = Weights.read_rows

    def noted(self: Weights, name: str, start: int, stop: int) -> np.ndarray:
        reads.append((name, start))
        return plain(self, name, start, stop)

    monkeypatch.setattr(Weights, "read_rows", noted)
    convert(str(folder), FORMS, models_dir=tmp_path / "models")
    positions = defaultdict(list)
    for position, name in enumerate(reads):
        positions[name].append(position)
    assert len(reads) > 300
    shared = [found for found in positions.values() if len(found) == len(FORMS)]
    assert len(shared) > 100  # rotated heads are cut elsewhere in GGUF
    assert max(last - first for first, *_, last in shared) < 30


def test_a_form_that_lags_behind_in_the_checkpoint_goes_first() -> None:
    def form(name: str, sizes: list[int]) -> list[pieces.Piece]:
        return [pieces.Piece(size, lambda: name, lambda result: written.append(result)) for size in sizes]

    written: list[str] = []
    done: list[int] = []
    with pieces.worker_pool() as pool:
        pieces.write_pieces([form("a", [4, 4]), form("b", [1, 1, 1, 1, 1, 1, 1, 1])], pool, done.append)
    assert "".join(written) == "abbbbabbbb"
    assert list(itertools.accumulate(done))[-1] == 16


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_no_number_is_named_and_leaves_nothing(tmp_path: Path, value: float, dtype: str) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3", dtype=dtype)
    values = random_tensors(CONFIGS["llama-3"])
    values["model.layers.1.mlp.down_proj.weight"][17, 5] = value
    write_safetensors(folder / "model.safetensors", values, dtype)
    for form in FORMS[:2]:
        with pytest.raises(
            CheckpointError, match=r"model\.layers\.1\.mlp\.down_proj\.weight holds -?(nan|inf) in row 17"
        ):
            convert(str(folder), [form], models_dir=tmp_path / "models")
    assert [path for path in (tmp_path / "models").rglob("*") if path.is_file() and path.suffix != ".lock"] == []
