"""Folders: which files hold the weights, in either format, and folders whose files don't fit each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localq.checkpoint.weights import INDEX_NAME, find_weights
from localq.errors import CheckpointError
from tests.checkpoint.torch_writer import write_torch_archive
from tests.tiny_checkpoints import write_safetensors, write_weights

TENSORS = {
    "matrix": np.arange(35, dtype=np.float32).reshape(7, 5) / 8 - 2,
    "vector": np.linspace(-1, 1, 9, dtype=np.float32),
    "cube": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
}
SHARDS = ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]
TORCH_INDEX = "pytorch_model.bin.index.json"


def with_index(folder: Path, change: Any) -> None:
    index = folder / INDEX_NAME
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


def matrix_of(values: np.ndarray) -> np.ndarray:
    """Any tensor as localq reads it: rows of its last dimension."""
    return values if values.ndim < 2 else values.reshape(-1, values.shape[-1])


def failure(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        find_weights(folder)
    assert caught.value.hint
    return caught.value


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_weights(tmp_path, TENSORS, "F32", shards=3)
    return tmp_path


def test_shards_are_read_with_and_without_their_index(sharded: Path) -> None:
    for _ in range(2):
        with find_weights(sharded) as weights:
            assert [file.name for file in weights.files()] == SHARDS
            for name, values in TENSORS.items():
                rows = matrix_of(values)
                np.testing.assert_array_equal(weights.read_rows(name, 0, len(rows)), rows)
        (sharded / INDEX_NAME).unlink(missing_ok=True)


def test_the_index_wins_over_a_single_file_beside_it(sharded: Path) -> None:
    write_safetensors(sharded / "model.safetensors", {"other": TENSORS["vector"]})
    assert set(find_weights(sharded).tensors) == set(TENSORS)


def test_links_to_files_elsewhere_are_followed_as_in_the_hugging_face_cache(sharded: Path) -> None:
    blobs = sharded / "blobs"
    blobs.mkdir()
    snapshot = sharded / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for number, file in enumerate([*SHARDS, INDEX_NAME]):
        shutil.move(sharded / file, blobs / str(number))
        (snapshot / file).symlink_to(f"../../blobs/{number}")
    with find_weights(snapshot) as weights:
        np.testing.assert_array_equal(weights.read_rows("matrix", 0, 7), TENSORS["matrix"])


@pytest.mark.parametrize("with_its_index", [True, False])
def test_missing_shards_are_counted_and_the_hint_helps(sharded: Path, with_its_index: bool) -> None:
    (sharded / SHARDS[1]).unlink()
    if not with_its_index:
        (sharded / INDEX_NAME).unlink()
    error = failure(sharded)
    assert (SHARDS[1] in error.message) == with_its_index
    assert "of 3 shards" in error.message
    assert "localq pull" in error.hint


def test_a_link_that_leads_nowhere_is_a_missing_file(sharded: Path) -> None:
    (sharded / SHARDS[0]).unlink()
    (sharded / SHARDS[0]).symlink_to("../blobs/gone")
    assert SHARDS[0] in failure(sharded).message
    for file in sharded.iterdir():
        file.unlink()
    (sharded / "model.safetensors").symlink_to("gone")
    assert "model.safetensors" in failure(sharded).message


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    content = (sharded / SHARDS[2]).read_bytes()
    (sharded / SHARDS[2]).write_bytes(content[:-1])
    assert SHARDS[2] in failure(sharded).message


@pytest.mark.parametrize(
    "outside",
    ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "", ".", "..", "a\\b", "model\0.safetensors", 5],
    ids=repr,
)
def test_an_index_names_files_of_its_own_folder_only(sharded: Path, outside: Any) -> None:
    if outside == "../secret.safetensors":
        write_safetensors(sharded.parent / "secret.safetensors", {"matrix": TENSORS["matrix"]})
    if outside == "sub/model.safetensors":
        (sharded / "sub").mkdir()
        write_safetensors(sharded / "sub" / "model.safetensors", {"matrix": TENSORS["matrix"]})
    with_index(sharded, lambda weight_map: weight_map.update(matrix=outside))
    failure(sharded)


def test_a_file_outside_the_folder_is_refused_as_one(sharded: Path) -> None:
    with_index(sharded, lambda weight_map: weight_map.update(matrix="../secret.safetensors"))
    error = failure(sharded)
    assert "'../secret.safetensors'" in error.message and "not a file of this folder" in error.message
    assert "trust" in error.hint


def test_an_index_with_a_name_too_long_for_a_file_is_refused(sharded: Path) -> None:
    with_index(sharded, lambda weight_map: weight_map.update(matrix="x" * 5000))
    assert "does not have 1 of" in failure(sharded).message


def test_a_tensor_that_its_shard_lacks_is_named_with_both_files(sharded: Path) -> None:
    with_index(sharded, lambda weight_map: weight_map.update(phantom=SHARDS[0]))
    error = failure(sharded)
    assert all(part in error.message for part in (INDEX_NAME, SHARDS[0], "phantom"))


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(sharded: Path) -> None:
    with_index(sharded, lambda weight_map: weight_map.update(matrix=weight_map["cube"]))
    assert "matrix" in failure(sharded).message


def test_a_tensor_that_the_index_does_not_name_is_read(sharded: Path) -> None:
    write_safetensors(sharded / SHARDS[0], {"matrix": TENSORS["matrix"], "adapter": TENSORS["vector"]}, "F32")
    assert set(find_weights(sharded).tensors) == {*TENSORS, "adapter"}


@pytest.mark.parametrize("with_its_index", [True, False])
def test_a_tensor_in_two_shards_is_refused_with_both_names(sharded: Path, with_its_index: bool) -> None:
    tensors = {"vector": TENSORS["vector"], "matrix": TENSORS["matrix"]}
    write_safetensors(sharded / SHARDS[1], tensors, "F32")
    if not with_its_index:
        (sharded / INDEX_NAME).unlink()
    error = failure(sharded)
    assert all(part in error.message for part in ("matrix", SHARDS[0], SHARDS[1]))


@pytest.mark.parametrize(
    "index",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": ["b"]}}',
        "[" * 100_000,
        '{"weight_map": {"a": 1, "b": "c"}}',
    ],
)
def test_a_damaged_index_is_named(sharded: Path, index: str) -> None:
    (sharded / INDEX_NAME).write_text(index)
    assert INDEX_NAME in failure(sharded).message


@pytest.mark.parametrize(
    ("beside", "what", "advice"),
    [
        ("consolidated.00.pth", "consolidated", "-hf"),
        ("consolidated.safetensors", "consolidated", "-hf"),
        ("adapter_model.safetensors", "adapter", "merge"),
        ("adapter_model.bin", "adapter", "merge"),
        ("x.gguf", ".gguf", "that file"),
        ("training_args.bin", "no weights", "localq pull"),
        ("readme.txt", "no weights", "localq pull"),
    ],
)
def test_a_folder_without_weights_says_what_it_has_instead(tmp_path: Path, beside: str, what: str, advice: str) -> None:
    (tmp_path / beside).touch()
    error = failure(tmp_path)
    assert what in error.message
    assert advice in error.hint


def test_files_that_are_not_weights_are_not_read(sharded: Path) -> None:
    for name in ("training_args.bin", "optimizer.bin", "scheduler.bin", "rng_state.pth", "adapter_model.safetensors"):
        (sharded / name).write_text("no weights")
    assert set(find_weights(sharded).tensors) == set(TENSORS)


TORCH_SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]


@pytest.fixture
def torch_sharded(tmp_path: Path) -> Path:
    names = list(TENSORS)
    parts = [names[:2], names[2:]]
    for file, part in zip(TORCH_SHARDS, parts, strict=True):
        write_torch_archive(tmp_path / file, {name: TENSORS[name] for name in part})
    weight_map = {name: file for file, part in zip(TORCH_SHARDS, parts, strict=True) for name in part}
    (tmp_path / TORCH_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def test_shards_of_pytorch_are_read_with_and_without_their_index(torch_sharded: Path) -> None:
    for _ in range(2):
        with find_weights(torch_sharded) as weights:
            assert [file.name for file in weights.files()] == TORCH_SHARDS
            for name, values in TENSORS.items():
                rows = matrix_of(values)
                np.testing.assert_array_equal(weights.read_rows(name, 0, len(rows)), rows)
        (torch_sharded / TORCH_INDEX).unlink(missing_ok=True)


def test_a_single_file_of_pytorch_is_read(tmp_path: Path) -> None:
    write_torch_archive(tmp_path / "pytorch_model.bin", TENSORS)
    (tmp_path / "training_args.bin").write_text("no weights")
    with find_weights(tmp_path) as weights:
        np.testing.assert_array_equal(weights.read_rows("matrix", 2, 5), TENSORS["matrix"][2:5])


@pytest.mark.parametrize("shards", [1, 3])
def test_safetensors_win_over_files_of_pytorch(torch_sharded: Path, shards: int) -> None:
    (torch_sharded / "pytorch_model.bin").write_bytes(b"never read")
    write_weights(torch_sharded, {"a": TENSORS["vector"], "b": TENSORS["vector"], "c": TENSORS["cube"]}, "F32", shards)
    assert set(find_weights(torch_sharded).tensors) == {"a", "b", "c"}


@pytest.mark.parametrize("with_its_index", [True, False])
def test_a_missing_shard_of_pytorch_is_counted(torch_sharded: Path, with_its_index: bool) -> None:
    (torch_sharded / TORCH_SHARDS[0]).unlink()
    if not with_its_index:
        (torch_sharded / TORCH_INDEX).unlink()
    error = failure(torch_sharded)
    assert "1 of 2 shards" in error.message
    assert (TORCH_SHARDS[0] in error.message) == with_its_index
    assert (TORCH_INDEX in error.message) == (not with_its_index)


def test_an_index_of_pytorch_names_files_of_its_own_folder_only(torch_sharded: Path) -> None:
    write_torch_archive(torch_sharded.parent / "secret.bin", {"matrix": TENSORS["matrix"]})
    index = {"weight_map": {"matrix": "../secret.bin"}}
    (torch_sharded / TORCH_INDEX).write_text(json.dumps(index))
    error = failure(torch_sharded)
    assert "'../secret.bin'" in error.message and TORCH_INDEX in error.message


def test_a_tensor_in_another_shard_of_pytorch_than_the_index_says_is_refused(torch_sharded: Path) -> None:
    index = {"weight_map": {**dict.fromkeys(TENSORS, TORCH_SHARDS[0]), "cube": TORCH_SHARDS[0], "x": TORCH_SHARDS[1]}}
    (torch_sharded / TORCH_INDEX).write_text(json.dumps(index))
    assert TORCH_SHARDS[0] in failure(torch_sharded).message
