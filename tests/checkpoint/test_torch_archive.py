"""Files of `torch.save` against what PyTorch itself reads from one, and other files that are refused."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from localq.checkpoint.tensors import StoredTensor, opened
from localq.checkpoint.torch_archive import read_torch_archive
from localq.conversion.convert import convert
from localq.errors import CheckpointError
from tests.checkpoint.make_torch_archive import EXPECTED, FILE
from tests.checkpoint.torch_writer import (
    ORDERED_DICT,
    call,
    dict_of,
    name,
    number,
    numbers,
    storage,
    tensor,
    text,
    write_archive,
    write_torch_archive,
)
from tests.gguf_file import tensor_data
from tests.tiny_checkpoints import CONFIGS, random_tensors, write_checkpoint

TEN = {"0": np.arange(10, dtype=np.float32).tobytes()}


def failure(file: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_torch_archive(file)
    assert caught.value.hint
    assert str(file) in caught.value.message
    return caught.value


def read_all(file: Path) -> dict[str, np.ndarray]:
    stored = read_torch_archive(file)
    tensors = {}
    with opened(stored) as files:
        for found in stored:
            rows = int(np.prod(found.shape[:-1], dtype=int)) if len(found.shape) > 1 else int(np.prod(found.shape))
            tensors[found.name] = found.read_rows(files, 0, rows).reshape(found.shape)
    return tensors


def test_a_file_of_pytorch_is_read_as_pytorch_reads_it() -> None:
    tensors = read_all(FILE)
    assert list(tensors) == list(EXPECTED)
    for key, values in EXPECTED.items():
        np.testing.assert_array_equal(tensors[key], values, strict=True)


def test_views_of_one_storage_have_the_same_bytes() -> None:
    found = {tensor.name: tensor for tensor in read_torch_archive(FILE)}
    base, tied, rows = found["float32"], found["tied"], found["rows"]
    assert isinstance(base, StoredTensor) and isinstance(tied, StoredTensor) and isinstance(rows, StoredTensor)
    assert base.offset == tied.offset == rows.offset - 2 * 4 * 4


def test_what_the_tests_write_is_read_like_what_pytorch_writes(tmp_path: Path) -> None:
    values = {"a": EXPECTED["float32"], "b.c": EXPECTED["cube"]}
    for dtype, bits in [("F32", np.float32), ("F16", np.float16), ("BF16", np.uint16)]:
        tensors = read_all(write_archive_of(tmp_path, values, dtype))
        assert list(tensors) == ["a", "b.c"] and tensors["a"].dtype == bits
        if dtype != "BF16":
            np.testing.assert_array_equal(tensors["b.c"], values["b.c"])


def write_archive_of(folder: Path, values: dict[str, np.ndarray], dtype: str) -> Path:
    write_torch_archive(folder / "pytorch_model.bin", values, dtype)
    return folder / "pytorch_model.bin"


def test_a_file_without_byte_order_is_little_endian(tmp_path: Path) -> None:
    whole = write_archive(tmp_path / "a.bin", dict_of({"a": tensor(storage(10), 4, (2, 3), (3, 1))}), TEN)
    raw = whole.read_bytes().replace(b"byteorder", b"xyteorder")
    whole.write_bytes(raw)
    np.testing.assert_array_equal(read_all(whole)["a"], [[4, 5, 6], [7, 8, 9]])


def test_a_file_of_a_big_endian_machine_is_refused(tmp_path: Path) -> None:
    pickled = dict_of({"a": tensor(storage(10), 0, (10,), (1,))})
    assert "big-endian" in failure(write_archive(tmp_path / "a.bin", pickled, TEN, {"byteorder": b"big"})).message


@pytest.mark.parametrize(
    "view",
    [
        tensor(storage(10), 0, (11,), (1,)),
        tensor(storage(10), 1, (10,), (1,)),
        tensor(storage(10), 0, (2, 3), (7, 2)),
        tensor(storage(10), 11, (0,), (1,)),
        tensor(storage(10), 2**62, (1,), (1,)),
        tensor(storage(10), -1, (2,), (1,)),
        tensor(storage(10), 9, (2,), (-1,)),
        tensor(storage(10), 0, (-1,), (1,)),
        tensor(storage(10), 0, (2, 2), (1,)),
        tensor(storage(10), 0, (2**63,), (0,)),
        tensor(storage(10), 0, (1,) * 65, (1,) * 65),
        tensor(storage(11), 0, (1,), (1,)),
        tensor(storage(9), 0, (1,), (1,)),
        tensor(storage(-10), 0, (1,), (1,)),
        tensor(storage(2**100), 0, (1,), (1,)),
        tensor(storage(10, "1"), 0, (1,), (1,)),
        tensor(storage(10, "../byteorder"), 0, (1,), (1,)),
        tensor(storage(10, kind="DoubleStorage"), 0, (1,), (1,)),
        tensor(number(7), 0, (1,), (1,)),
        tensor(text("x") + b"Q", 0, (1,), (1,)),
        tensor(storage(10), 0, (1,), (1,)).replace(number(1), b"\x88"),
        call(name("torch._utils", "_rebuild_tensor_v2"), storage(10)),
        call(name("torch._utils", "_rebuild_tensor_v2"), storage(10), number(0), numbers(1), number(1), b"\x89", b"N"),
        call(name("torch._utils", "_rebuild_parameter"), number(0), b"\x89", ORDERED_DICT),
        call(name("torch._utils", "_rebuild_tensor_v3"), storage(10), number(0), numbers(1), numbers(1), b"\x89"),
        call(name("torch", "Size"), number(2**60)),
    ],
)
def test_a_tensor_that_its_storage_cannot_hold_is_refused(tmp_path: Path, view: bytes) -> None:
    assert "dict of tensors" in failure(write_archive(tmp_path / "a.bin", dict_of({"a": view}), TEN)).message


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((5,), (0,)),
        ((2**40, 2**20), (0, 0)),
        ((1, 5), (0, 2)),
        ((2, 1, 5), (1, 1, 2)),
        ((8, 8), (1, 0)),
        ((4, 4), (1, 1)),
    ],
)
def test_a_view_that_repeats_elements_is_refused_by_name(
    tmp_path: Path, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    file = write_archive(tmp_path / "a.bin", dict_of({"odd": tensor(storage(10), 0, shape, strides)}), TEN)
    error = failure(file)
    assert f"tensor odd of shape {shape}" in error.message and "contiguous()" in error.hint


def test_a_conjugated_or_negated_view_is_not_read_as_its_storage(tmp_path: Path) -> None:
    plain = tensor(storage(10), 0, (10,), (1,))
    negated = plain.removesuffix(b"tR") + b"}" + text("neg") + b"\x88stR"
    assert "metadata" in failure(write_archive(tmp_path / "a.bin", dict_of({"a": negated}), TEN)).message


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        (name("torch._utils", "_rebuild_sparse_tensor"), "sparse"),
        (name("torch._utils", "_rebuild_qtensor"), "quantized"),
        (name("torch", "QInt8Storage"), "quantized"),
        (name("torch", "per_tensor_affine"), "per_tensor_affine"),
        (name("torch._utils", "_rebuild_meta_tensor_no_storage"), "without data"),
        (name("torch", "ComplexFloatStorage"), "complex"),
    ],
)
def test_tensors_of_other_kinds_are_refused_by_name(tmp_path: Path, asked: bytes, kind: str) -> None:
    assert kind in failure(write_archive(tmp_path / "a.bin", dict_of({"a": asked}), TEN)).message


def test_a_nested_dict_is_refused_with_the_command_that_saves_its_tensors(tmp_path: Path) -> None:
    inner = ORDERED_DICT + text("a") + tensor(storage(10), 0, (10,), (1,)) + b"s"
    error = failure(write_archive(tmp_path / "a.bin", dict_of({"state_dict": inner, "epoch": number(3)}), TEN))
    assert "'state_dict'" in error.message
    assert "['state_dict']" in error.hint and "weights_only=True" in error.hint


def test_a_hint_never_repeats_text_that_a_shell_could_run(tmp_path: Path) -> None:
    error = failure(write_archive(tmp_path / "a.bin", dict_of({"$(reboot)": ORDERED_DICT}), TEN))
    assert "reboot" not in error.hint


@pytest.mark.parametrize("entry", [number(3), text("x"), b"N", b"]", storage(10), name("torch", "Size")])
def test_an_entry_that_is_not_a_tensor_is_named(tmp_path: Path, entry: bytes) -> None:
    pickled = dict_of({"a": tensor(storage(10), 0, (10,), (1,)), "stray": entry})
    assert "'stray' is not a tensor" in failure(write_archive(tmp_path / "a.bin", pickled, TEN)).message


@pytest.mark.parametrize("key", ["a\x1b[2J", "a\nb", "\ud800"], ids=ascii)
def test_a_name_that_is_not_printable_is_refused_and_quoted(tmp_path: Path, key: str) -> None:
    error = failure(write_archive(tmp_path / "a.bin", dict_of({key: tensor(storage(10), 0, (1,), (1,))}), TEN))
    assert key not in error.message
    error.message.encode()


@pytest.mark.parametrize(
    ("content", "what", "advice"),
    [
        (b"", "not a file that torch.save writes", "download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page", "open it"),
        (b"\n <html>", "web page", "open it"),
        (b'{"error":"Repository not found"}', "message", "open it"),
        (b"\x80\x02\x8a\x0alFc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "before 1.6", "torch.save(torch.load("),
        (b"sys_info".ljust(257, b"\0") + b"ustar\x0000", "PyTorch 0.1", "safetensors"),
        (b"\x40\0\0\0\0\0\0\0" + json.dumps({"__metadata__": {}}).encode(), "safetensors", "rename"),
        (b"PK\x03\x04" + b"\0" * 100, "not a complete zip", "download"),
        (b"GGUF" + b"\0" * 100, "not a file that torch.save writes", "download"),
    ],
)
def test_another_file_under_the_name_of_a_weight_file_is_refused_as_what_it_is(
    tmp_path: Path, content: bytes, what: str, advice: str
) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    error = failure(tmp_path / "pytorch_model.bin")
    assert what in error.message and advice in error.hint


def test_a_torchscript_program_and_another_zip_file_are_refused(tmp_path: Path) -> None:
    pickled = dict_of({"a": tensor(storage(10), 0, (10,), (1,))})
    program = write_archive(tmp_path / "a.bin", pickled, TEN, {"constants.pkl": b"\x80\x02)."})
    assert "TorchScript" in failure(program).message
    other = write_archive(tmp_path / "b.bin", pickled, TEN)
    other.write_bytes(other.read_bytes().replace(b"data.pkl", b"data.txt"))
    assert "torch.save did not write" in failure(other).message
    two = write_archive(tmp_path / "c.bin", pickled, TEN, {"x/data.pkl": pickled})
    assert "torch.save did not write" in failure(two).message


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    assert "No such file" in failure(tmp_path / "none.bin").message
    assert "it is a folder" in failure(tmp_path).message


def test_a_pickle_with_other_bytes_than_its_checksum_says_is_refused(tmp_path: Path) -> None:
    pickled = dict_of({"weight": tensor(storage(10), 0, (10,), (1,))})
    file = write_archive(tmp_path / "a.bin", pickled, TEN)
    file.write_bytes(file.read_bytes().replace(b"weight", b"height"))
    assert "checksum" in failure(file).message


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path: Path) -> None:
    content = FILE.read_bytes()
    file = tmp_path / "pytorch_model.bin"
    for length in range(0, len(content), 3):
        file.write_bytes(content[:length])
        failure(file)


def test_a_file_with_changed_bytes_is_read_or_refused(tmp_path: Path) -> None:
    """Never a traceback, and never a tensor that can't be read."""
    content = bytearray(FILE.read_bytes())
    data, directory = content.index(b"/data.pkl") + 9, content.index(b"PK\x01\x02")
    chance = random.Random(0)
    file = tmp_path / "pytorch_model.bin"
    refused = 0
    for _ in range(1500):
        damaged = content.copy()
        for _ in range(chance.choice((1, 1, 2, 5))):
            place = chance.randrange(directory, len(content)) if chance.random() < 0.7 else chance.randrange(data)
            damaged[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        file.write_bytes(damaged)
        try:
            read_all(file)
        except CheckpointError:
            refused += 1
    assert 100 < refused < 1500


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("model", "dtype"), [("llama-3.2", "BF16"), ("phi-3-4k", "F16")])
def test_artifacts_are_those_of_the_same_weights_in_safetensors(
    tmp_path: Path, model: str, dtype: str, transposed: bool
) -> None:
    folder = write_checkpoint(tmp_path / "safetensors", model, dtype=dtype)
    twin = tmp_path / "torch"
    shutil.copytree(folder, twin, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = random_tensors(CONFIGS[model])
    write_torch_archive(twin / "pytorch_model.bin", tensors, dtype, transposed=transposed)
    recipes = ["gguf-q4_k_m", "mlx-4bit"]
    expected, made = (convert(str(source), recipes, models_dir=tmp_path / source.name) for source in (folder, twin))
    assert tensor_data(made[0].path) == tensor_data(expected[0].path)
    weights = [next(artifact.path.glob("*.safetensors")).read_bytes() for artifact in (expected[1], made[1])]
    assert weights[0] == weights[1]
