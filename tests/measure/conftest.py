"""A tiny random Llama with a context of 512 tokens, in both formats."""

from __future__ import annotations

from pathlib import Path

import pytest

from localq.measure.forms import Form, find_forms
from tests.tiny_checkpoints import write_checkpoint


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny", "llama-3.2")


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def forms(checkpoint_folder: Path, models_dir: Path) -> list[Form]:
    """MLX 4-bit and GGUF Q4_K_M."""
    return find_forms([str(checkpoint_folder)], models_dir)
