"""MLX folders that would end the process that opens them."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

import localq
from localq.errors import CheckpointError, EngineError, ModelFileError
from localq.trial import verdicts
from localq.trial.mlx import trust
from localq.trial.process import Trial

pytest.importorskip("mlx_lm")


@pytest.fixture
def folder(tmp_path: Path, models_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that localq did not make."""
    (artifact,) = localq.convert("toy-llama", ["mlx-4bit"], models_dir=models_dir)
    shutil.copytree(artifact.folder, tmp_path / "foreign")
    (tmp_path / "foreign" / "localq.json").unlink()
    monkeypatch.setattr(verdicts, "_this_process", {})
    return tmp_path / "foreign"


def _change_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_a_size_by_which_mlx_divides_by_zero_is_refused(folder: Path) -> None:
    _change_config(folder, intermediate_size=3)
    with pytest.raises(ModelFileError, match="foreign can't be opened: MLX ends the process with SIGFPE"):
        localq.load(folder)


def test_an_artifact_of_localq_is_not_tried(models_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Trial, "run", lambda trial: pytest.fail(f"{trial.path} is tried"))
    monkeypatch.setattr(verdicts, "_this_process", {})
    (artifact,) = localq.convert("toy-llama", ["mlx-4bit"], models_dir=tmp_path)
    localq.load(artifact).close()


def test_a_folder_that_cant_be_listed_is_not_noted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, pattern: str) -> list[Path]:
        raise OSError(errno.EINVAL, "Invalid argument", str(path))

    monkeypatch.setattr(Path, "glob", fail)
    trust(folder)


def test_more_layers_than_tensors_are_refused_before_mlx_makes_them(folder: Path) -> None:
    _change_config(folder, num_hidden_layers=2**31)
    with pytest.raises(CheckpointError, match="2147483648 layers; the weights are only 50 tensors"):
        localq.load(folder, context_length=64)


@pytest.mark.parametrize("cut", [0, 7, 1000, -10])
def test_weights_that_are_cut_off_are_refused_before_mlx_reads_them(folder: Path, cut: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises((CheckpointError, EngineError), match="model.safetensors"):
        localq.load(folder)
