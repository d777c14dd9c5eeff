"""Importance matrices: the files of llama.cpp's tools, against llama.cpp's own writer, and damaged ones."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from localq.calibration.importance import ImportanceMatrix, read_importance, write_importance
from localq.errors import CalibrationError

DENSE, EXPERTS = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight"
SUMS = np.random.default_rng(1).lognormal(0, 3, (3, 40)).astype(np.float32)
MATRIX = ImportanceMatrix(
    sums={EXPERTS: SUMS, DENSE: SUMS[:1, :24]},
    counts={EXPERTS: np.array([512, 0, 7], np.float32), DENSE: np.array([512], np.float32)},
    datasets=("wiki.train.raw", "größer.txt"),
    chunk_count=3,
    chunk_tokens=512,
)


def write_as_llama_imatrix(file: Path, matrix: ImportanceMatrix) -> None:
    """`IMatrixCollector::save_imatrix`, call for call."""
    from llama_cpp import _ggml

    ggml = ctypes.CDLL(_ggml.libggml._name)
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    ggml.ggml_init.restype = ggml.gguf_init_empty.restype = ggml.ggml_get_data.restype = pointer
    ggml.ggml_new_tensor_2d.restype = pointer
    ggml.ggml_new_tensor_2d.argtypes = [pointer, ctypes.c_int, number, number]
    ggml.ggml_get_data.argtypes = ggml.gguf_free.argtypes = ggml.ggml_free.argtypes = [pointer]
    ggml.ggml_set_name.argtypes = [pointer, text]
    ggml.gguf_set_val_str.argtypes = [pointer, text, text]
    ggml.gguf_set_val_u32.argtypes = [pointer, text, ctypes.c_uint32]
    ggml.gguf_set_arr_str.argtypes = [pointer, text, pointer, ctypes.c_size_t]
    ggml.gguf_add_tensor.argtypes = [pointer, pointer]
    ggml.gguf_write_to_file.argtypes = [pointer, text, ctypes.c_bool]

    class Parameters(ctypes.Structure):
        _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", pointer), ("no_alloc", ctypes.c_bool))

    context = ggml.ggml_init(Parameters(1 << 20, None, False))
    gguf = ggml.gguf_init_empty()
    datasets = (text * len(matrix.datasets))(*[name.encode() for name in matrix.datasets])
    ggml.gguf_set_val_str(gguf, b"general.type", b"imatrix")
    ggml.gguf_set_arr_str(gguf, b"imatrix.datasets", ctypes.addressof(datasets), len(datasets))
    ggml.gguf_set_val_u32(gguf, b"imatrix.chunk_count", matrix.chunk_count)
    ggml.gguf_set_val_u32(gguf, b"imatrix.chunk_size", matrix.chunk_tokens)
    for name in sorted(matrix.sums):
        for part, values in (("in_sum2", matrix.sums[name]), ("counts", matrix.counts[name][:, None])):
            rows, columns = values.shape
            tensor = ggml.ggml_new_tensor_2d(context, 0, columns, rows)
            ggml.ggml_set_name(tensor, f"{name}.{part}".encode())
            data = np.ascontiguousarray(values).tobytes()
            ctypes.memmove(ggml.ggml_get_data(tensor), data, len(data))
            ggml.gguf_add_tensor(gguf, tensor)
    assert ggml.gguf_write_to_file(gguf, str(file).encode(), False)
    ggml.gguf_free(gguf)
    ggml.ggml_free(context)


def dat(values: Mapping[str, tuple[int, NDArray[np.float32]]], trailer: bytes = b"") -> bytes:
    """As `IMatrixCollector::save_imatrix_legacy` writes: calls, and the sum of the mean in each of them."""
    parts = [struct.pack("<i", len(values))]
    for name, (calls, means) in values.items():
        head = struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, means.size)
        parts += [head, (means * np.float32(calls or 1)).astype("<f4").tobytes()]
    return b"".join(parts) + trailer


def test_a_written_file_has_the_bytes_of_llama_imatrix(tmp_path: Path) -> None:
    write_importance(tmp_path / "ours.gguf", MATRIX)
    write_as_llama_imatrix(tmp_path / "theirs.gguf", MATRIX)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_as_llama_imatrix(tmp_path / "imatrix.gguf", MATRIX)
    found = read_importance(tmp_path / "imatrix.gguf")
    assert (found.datasets, found.chunk_count, found.chunk_tokens) == (MATRIX.datasets, 3, 512)
    assert found.sums.keys() == MATRIX.sums.keys()
    for name in MATRIX.sums:
        np.testing.assert_array_equal(found.sums[name], MATRIX.sums[name])
        np.testing.assert_array_equal(found.counts[name], MATRIX.counts[name])


def test_weights_are_means_and_1_for_an_expert_without_tokens() -> None:
    weights = MATRIX.weights(EXPERTS)
    assert weights is not None and weights.dtype == np.float32
    np.testing.assert_array_equal(weights[0], SUMS[0] / np.float32(512))
    np.testing.assert_array_equal(weights[1], np.ones(40, np.float32))
    np.testing.assert_array_equal(weights[2], SUMS[2] / np.float32(7))
    assert MATRIX.weights("output.weight") is None


@pytest.mark.parametrize(
    ("trailer", "chunks", "datasets"),
    [
        (struct.pack("<ii", 9, 8) + b"wiki.raw", 9, ("wiki.raw",)),
        (struct.pack("<ii", 9, 0), 9, ()),
        (b"", 0, ()),
    ],
    ids=["with a text", "without a text", "of 2023"],
)
def test_the_older_file_gives_the_means(trailer: bytes, chunks: int, datasets: tuple[str, ...], tmp_path: Path) -> None:
    means = (SUMS[0] / np.float32(64)).astype(np.float32)
    (tmp_path / "imatrix.dat").write_bytes(dat({DENSE: (4, means), EXPERTS: (0, means[:12])}, trailer))
    found = read_importance(tmp_path / "imatrix.dat")
    assert (found.chunk_count, found.datasets, found.chunk_tokens) == (chunks, datasets, 0)
    for name, expected in ((DENSE, means), (EXPERTS, means[:12])):
        weights = found.weights(name)
        assert weights is not None
        np.testing.assert_array_equal(weights, expected[None])


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("of", ["sums", "counts"])
def test_what_is_no_sum_of_squares_is_refused(value: float, of: str, tmp_path: Path) -> None:
    damaged = {name: values.copy() for name, values in getattr(MATRIX, of).items()}
    damaged[DENSE].flat[-1] = value
    parts = {"sums": MATRIX.sums, "counts": MATRIX.counts, of: damaged}
    write_importance(tmp_path / "imatrix.gguf", ImportanceMatrix(**parts))
    with pytest.raises(CalibrationError, match=f"imatrix.gguf is damaged: {DENSE} has a value"):
        read_importance(tmp_path / "imatrix.gguf")


def test_sums_without_their_counts_are_refused(tmp_path: Path) -> None:
    write_importance(tmp_path / "imatrix.gguf", MATRIX)
    content = (tmp_path / "imatrix.gguf").read_bytes()
    (tmp_path / "imatrix.gguf").write_bytes(content.replace(b"attn_q.weight.counts", b"attn_k.weight.counts"))
    with pytest.raises(CalibrationError, match=r"blk.0.attn_q.weight.counts is missing"):
        read_importance(tmp_path / "imatrix.gguf")


@pytest.mark.parametrize(
    "content",
    [b"", b"GGUF", b"GGUF" + bytes(20), b"once upon a time " * 9, bytes(64), struct.pack("<i", 1), b"\xff" * 64],
)
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(CalibrationError):
        read_importance(tmp_path / "other")


def test_a_model_is_no_matrix_and_a_folder_no_file(tmp_path: Path) -> None:
    from tests.foreign_forms import write_gguf

    write_gguf(tmp_path / "model.gguf", "llama")
    with pytest.raises(CalibrationError, match="is a GGUF file, but not an importance matrix") as caught:
        read_importance(tmp_path / "model.gguf")
    assert "llama-imatrix" in caught.value.hint
    for name in (".", "missing"):
        with pytest.raises(CalibrationError, match="can't read the importance matrix"):
            read_importance(tmp_path / name)


@pytest.fixture(scope="module", params=["gguf", "dat"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("whole") / f"imatrix.{request.param}"
    if request.param == "gguf":
        write_importance(file, MATRIX)
    else:
        file.write_bytes(dat({DENSE: (4, SUMS[0]), EXPERTS: (2, SUMS[1])}, struct.pack("<ii", 9, 3) + b"raw"))
    return file


@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(whole: Path, data: st.DataObject) -> None:
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = whole.with_name("damaged")
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = read_importance(damaged)
    except CalibrationError as error:
        assert str(damaged) in error.message
        return
    for name in found.sums:
        weights = found.weights(name)
        assert weights is not None and np.isfinite(weights).all() and (weights >= 0).all()
