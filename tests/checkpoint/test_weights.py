"""Weights against the `safetensors` library, and folders whose files don't fit each other."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localq.checkpoint.weights import INDEX_NAME, Weights, find_weights
from localq.errors import CheckpointError
from tests.tiny_checkpoints import write_safetensors, write_weights

safe_open = pytest.importorskip("safetensors").safe_open

TENSORS = {
    "matrix": np.arange(35, dtype=np.float32).reshape(7, 5) / 8 - 2,
    "vector": np.linspace(-1, 1, 9, dtype=np.float32),
    "cube": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
}
SHARDS = ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"]


def with_index(folder: Path, change: Any) -> None:
    index = folder / INDEX_NAME
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


def failure(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        find_weights(folder)
    assert caught.value.hint
    return caught.value


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    write_weights(tmp_path, TENSORS, "F32", shards=3)
    return tmp_path


@pytest.mark.parametrize(("dtype", "read_as"), [("F32", np.float32), ("F16", np.float16), ("BF16", np.uint16)])
def test_rows_have_the_bits_that_the_library_reads(tmp_path: Path, dtype: str, read_as: type) -> None:
    write_weights(tmp_path, TENSORS, dtype, shards=1)
    with safe_open(tmp_path / "model.safetensors", "np") as library, find_weights(tmp_path) as weights:
        for name, values in TENSORS.items():
            rows = weights.read_rows(name, 0, len(values))
            assert rows.dtype == read_as
            if dtype != "BF16":  # numpy has no bfloat16 of its own
                np.testing.assert_array_equal(rows, library.get_tensor(name))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize(("start", "stop"), [(0, 7), (0, 1), (3, 5), (6, 7), (4, 4)])
def test_a_range_of_rows_is_that_range_in_float32(tmp_path: Path, dtype: str, start: int, stop: int) -> None:
    write_weights(tmp_path, TENSORS, dtype, shards=1)
    expected = TENSORS["matrix"] if dtype != "F16" else TENSORS["matrix"].astype(np.float16).astype(np.float32)
    with find_weights(tmp_path) as weights:
        rows = weights.read_rows_float32("matrix", start, stop)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected[start:stop])


def test_every_bfloat16_is_widened_without_a_change_of_bits(tmp_path: Path) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    write_safetensors(tmp_path / "model.safetensors", {"all": (bits.astype(np.uint32) << 16).view(np.float32)})
    with find_weights(tmp_path) as weights:
        wide = weights.read_rows_float32("all", 0, len(bits))
        np.testing.assert_array_equal(weights.read_rows("all", 0, len(bits)), bits)
    np.testing.assert_array_equal(wide.view(np.uint32) >> 16, bits)
    assert not np.any(wide.view(np.uint32) & 0xFFFF)


def test_shards_are_read_with_and_without_their_index(sharded: Path) -> None:
    for _ in range(2):
        with find_weights(sharded) as weights:
            assert [file.name for file in weights.files()] == SHARDS
            for name, values in TENSORS.items():
                np.testing.assert_array_equal(weights.read_rows(name, 0, len(values)), values)
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
def test_a_missing_shard_is_counted_and_advice_given(sharded: Path, with_its_index: bool) -> None:
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


def test_a_file_outside_the_folder_is_called_that(sharded: Path) -> None:
    with_index(sharded, lambda weight_map: weight_map.update(matrix="../secret.safetensors"))
    error = failure(sharded)
    assert "'../secret.safetensors'" in error.message and "not a file of this folder" in error.message
    assert "trust" in error.hint


def test_an_index_with_a_name_too_long_for_a_file_is_refused(sharded: Path) -> None:
    with_index(sharded, lambda weight_map: weight_map.update(matrix="x" * 5000))
    assert "lacks 1 of" in failure(sharded).message


def test_a_tensor_that_its_shard_lacks_is_named_with_both_files(sharded: Path) -> None:
    with_index(sharded, lambda weight_map: weight_map.update(phantom=SHARDS[0]))
    error = failure(sharded)
    assert all(part in error.message for part in (INDEX_NAME, SHARDS[0], "phantom"))


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(sharded: Path) -> None:
    with_index(sharded, lambda weight_map: weight_map.update(matrix=weight_map["cube"]))
    assert "matrix" in failure(sharded).message


def test_a_tensor_that_the_index_leaves_out_is_not_lost(sharded: Path) -> None:
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
def test_an_index_that_is_none_is_named(sharded: Path, index: str) -> None:
    (sharded / INDEX_NAME).write_text(index)
    assert INDEX_NAME in failure(sharded).message


@pytest.mark.parametrize(
    ("beside", "advice"),
    [("pytorch_model-00001-of-00002.bin", "safetensors"), ("x.gguf", ".gguf"), ("readme.txt", "localq pull")],
)
def test_a_folder_without_safetensors_says_what_it_has_instead(tmp_path: Path, beside: str, advice: str) -> None:
    (tmp_path / beside).touch()
    error = failure(tmp_path)
    assert "no safetensors" in error.message
    assert advice in error.hint


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    write_weights(tmp_path, TENSORS, "F32", shards=1)
    with find_weights(tmp_path) as weights:
        os.truncate(tmp_path / "model.safetensors", weights.tensors["cube"].offset + 10)
        np.testing.assert_array_equal(weights.read_rows("matrix", 0, 7), TENSORS["matrix"])
        with pytest.raises(CheckpointError, match="model.safetensors ended while tensor cube") as caught:
            weights.read_rows("cube", 0, 2)
    assert caught.value.hint


def test_a_file_that_goes_away_before_it_is_opened_is_an_error(sharded: Path) -> None:
    weights = find_weights(sharded)
    (sharded / SHARDS[2]).unlink()
    before = open_files()
    with pytest.raises(CheckpointError, match=SHARDS[2]), weights:
        pass
    assert open_files() == before


def test_closing_frees_the_files_and_opening_again_works(sharded: Path) -> None:
    weights = find_weights(sharded)
    before = open_files()
    for _ in range(2):
        with weights:
            assert open_files() == before + 3
            np.testing.assert_array_equal(weights.read_rows("vector", 2, 4), TENSORS["vector"][2:4])
        assert open_files() == before


def test_threads_read_at_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((400, 64)).astype(np.float32)
    write_weights(tmp_path, {"a": values, "b": -values}, "F32", shards=2)

    def read(weights: Weights, number: int) -> bool:
        name, sign = ("a", 1) if number % 2 else ("b", -1)
        start = number % 300
        return np.array_equal(weights.read_rows_float32(name, start, start + 100), sign * values[start : start + 100])

    with find_weights(tmp_path) as weights, ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda number: read(weights, number), range(600)))
