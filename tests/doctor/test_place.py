"""What can be examined, and what is a form already."""

from __future__ import annotations

from pathlib import Path

import pytest

from localq.conversion.convert import convert
from localq.doctor.place import find_place
from localq.errors import CheckpointError, LocalqError, ModelNotFoundError, ModelReferenceError, StoreError
from localq.reference import parse_reference
from tests.tiny_checkpoints import write_checkpoint


def refusal(reference: str | Path) -> LocalqError:
    with pytest.raises(LocalqError) as caught:
        find_place(parse_reference(reference))
    return caught.value


def test_a_folder_a_toy_and_the_name_of_a_converted_folder_are_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_checkpoint(tmp_path / "my-model", "llama-3")
    assert find_place(parse_reference(folder)).folder == folder
    assert find_place(parse_reference("toy-llama")).name == "toy-llama"
    monkeypatch.setenv("LOCALQ_MODELS", str(tmp_path / "models"))
    assert isinstance(refusal("local/my-model"), ModelNotFoundError)
    convert(folder, "mlx-bf16")
    assert find_place(parse_reference("local/my-model")).folder == folder


def test_artifacts_are_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "my model", "llama-3")
    mlx, gguf = convert(folder, ["mlx-bf16", "gguf-q8_0"], models_dir=tmp_path / "models")
    for artifact in (mlx, gguf):
        error = refusal(artifact.folder)
        assert artifact.name in error.message
        assert f"localq doctor '{folder}'" in error.hint
    error = refusal(gguf.path)
    assert "GGUF file" in error.message and "localq generate" in error.hint
    (mlx.folder / "localq.json").unlink()
    error = refusal(mlx.folder)
    assert isinstance(error, CheckpointError) and "MLX folder" in error.message and "localq generate" in error.hint


def test_a_damaged_artifact_is_refused_with_the_command_that_makes_it_again(tmp_path: Path) -> None:
    (artifact,) = convert("toy-llama", "gguf-q8_0", models_dir=tmp_path)
    artifact.path.unlink()
    error = refusal(artifact.folder)
    assert isinstance(error, StoreError) and "--force" in error.hint


def test_a_reference_with_a_recipe_is_refused_with_the_flag_to() -> None:
    error = refusal("toy-llama:gguf-q8_0")
    assert isinstance(error, ModelReferenceError) and "--to gguf-q8_0" in error.message


def test_a_repository_that_is_not_here_is_named_with_the_command_that_pulls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    error = refusal("org/absent")
    assert isinstance(error, ModelNotFoundError) and "localq pull org/absent" in error.hint


def test_a_damaged_checkpoint_is_found_as_well(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    (folder / "config.json").write_text("{")
    assert find_place(parse_reference(folder)).folder == folder
    (folder / "config.json").unlink()
    (folder / "model.safetensors").write_bytes(b"short")
    assert find_place(parse_reference(folder)).folder == folder
