"""Small checkpoints, a text, and their unquantized artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localq.calibrating import type_errors
from localq.checkpoint.folder import Checkpoint, open_checkpoint
from localq.conversion.convert import convert
from localq.demo.questions import read_held_out_text
from localq.store.manifest import Artifact
from tests.tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint."""
    parent = tmp_path_factory.mktemp("checkpoints")

    def make(name: str) -> Path:
        return parent / name if (parent / name).exists() else write_checkpoint(parent / name, name)

    return make


@pytest.fixture(scope="session")
def measured(
    folder_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Checkpoint, Artifact]]:
    """A tiny checkpoint and its artifact in float32."""
    models_dir = tmp_path_factory.mktemp("measured")

    def make(name: str) -> tuple[Checkpoint, Artifact]:
        (artifact,) = convert(str(folder_of(name)), ["gguf-f32"], models_dir=models_dir)
        return open_checkpoint(folder_of(name), name), artifact

    return make


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text that is not localq's own calibration text."""
    file = tmp_path_factory.mktemp("texts") / "held out.txt"
    file.write_text(read_held_out_text()[:9000], encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def few_sampled_rows() -> Iterator[None]:
    """The errors of all types on a few rows: most of the time of a small calibration goes there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type_errors, "SAMPLE_WEIGHTS", 1 << 10)
        patch.setattr(type_errors, "LEAST_ROWS", 4)
        yield
