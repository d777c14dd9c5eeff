"""Views of a file's elements against numpy's `as_strided`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localq.checkpoint.tensors import StoredTensor, StridedTensor, WeightFiles
from localq.errors import CheckpointError

ELEMENTS = np.arange(200, dtype=np.float16)


def view(file: Path, shape: tuple[int, ...], strides: tuple[int, ...], first: int = 3) -> StridedTensor:
    file.write_bytes(ELEMENTS.tobytes())
    return StridedTensor("view", shape, strides, StoredTensor("view", "F16", (200 - first,), file, 2 * first))


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((6, 8), (1, 6)), ((6, 8), (20, 1)), ((6, 8), (20, 2)), ((6, 8), (3, 20)), ((5, 5), (1, 1)), ((1, 9), (7, 4))],
)
def test_rows_are_those_of_numpy(tmp_path: Path, shape: tuple[int, int], strides: tuple[int, int]) -> None:
    tensor = view(tmp_path / "file", shape, strides)
    bytes_apart = tuple(2 * stride for stride in strides)
    expected = np.lib.stride_tricks.as_strided(ELEMENTS[3:], shape, bytes_apart)
    files = WeightFiles()
    files.open(tensor.files)
    for start in range(shape[0] + 1):
        for stop in range(start, shape[0] + 1):
            rows = tensor.read_rows(files, start, stop)
            np.testing.assert_array_equal(rows, expected[start:stop], strict=True)
    files.close()
    assert (tensor.dtype, tensor.nbytes) == ("F16", 2 * expected.size)


def test_elements_of_a_vector_are_those_of_numpy(tmp_path: Path) -> None:
    tensor = view(tmp_path / "file", (10,), (7,))
    files = WeightFiles()
    files.open(tensor.files)
    for start, stop in [(0, 10), (0, 1), (4, 8), (9, 10), (5, 5)]:
        elements = tensor.read_rows(files, start, stop)
        np.testing.assert_array_equal(elements, ELEMENTS[3::7][start:stop], strict=True)
    files.close()


def test_a_file_that_shrank_is_an_error_with_the_tensors_name(tmp_path: Path) -> None:
    tensor = view(tmp_path / "file", (6, 8), (1, 6))
    (tmp_path / "file").write_bytes(b"\0" * 40)
    files = WeightFiles()
    files.open(tensor.files)
    with pytest.raises(CheckpointError, match="ended while tensor view"):
        tensor.read_rows(files, 0, 6)
    files.close()
