"""A tiny random Llama as GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from localq.conversion.convert import convert
from tests.tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="session")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The file of a recipe."""
    checkpoint = write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", "llama-3.2")
    models_dir = tmp_path_factory.mktemp("gguf-models")

    def make(recipe: str) -> Path:
        (artifact,) = convert(str(checkpoint), [recipe], models_dir=models_dir)
        return artifact.path

    return make
