"""Headers against the `safetensors` library: equal on good files, never less strict on damaged ones."""

from __future__ import annotations

import json
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localq.checkpoint.safetensors_header import DTYPE_BYTES, read_header
from localq.errors import CheckpointError, UnsupportedModelError
from tests.tiny_checkpoints import write_safetensors

safetensors = pytest.importorskip("safetensors")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

DATA = bytes(range(24))


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = {"__metadata__": {"format": "pt"}, "a": entry(), "b": entry("BF16", (2, 4), (8, 24))}


def container(header: Any, data: bytes = DATA, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def written(tmp_path: Path, content: bytes) -> Path:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    return file


def test_every_tensor_is_found_where_the_library_finds_it(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {
        "single": random.standard_normal((3, 5)).astype(np.float32),
        "half": random.standard_normal((7,)).astype(np.float16),
        "double": random.standard_normal((2, 2)),
        "numbers": np.arange(6, dtype=np.int64).reshape(1, 2, 3),
        "bytes": np.arange(5, dtype=np.uint8),
        "flags": np.array([True, False]),
        "scalar": np.array(1.5, dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float32),
        "naïve 名": np.zeros((1,), dtype=np.int8),
    }
    file = tmp_path / "model.safetensors"
    safetensors_numpy.save_file(tensors, file, metadata={"format": "pt"})
    raw = file.read_bytes()
    expected = {name: found for name, found in safetensors.deserialize(raw)}
    headers = read_header(file)
    assert {tensor.name for tensor in headers} == set(tensors)
    for tensor in headers:
        assert list(tensor.shape) == expected[tensor.name]["shape"]
        assert tensor.dtype == expected[tensor.name]["dtype"]
        assert raw[tensor.offset : tensor.offset + tensor.nbytes] == expected[tensor.name]["data"]
        assert tensor.element_count == tensors[tensor.name].size


def test_tensors_come_in_file_order(tmp_path: Path) -> None:
    file = written(tmp_path, container({"late": entry(offsets=(8, 16)), "early": entry()}, DATA[:16]))
    assert [tensor.name for tensor in read_header(file)] == ["early", "late"]


def test_a_file_without_tensors_has_none(tmp_path: Path) -> None:
    assert read_header(written(tmp_path, container({}, b""))) == []


def test_an_empty_tensor_may_be_anywhere(tmp_path: Path) -> None:
    content = container({"full": entry(), "none": entry(shape=(0,), offsets=(0, 0))}, DATA[:8])
    assert len(safetensors.deserialize(content)) == 2
    assert len(read_header(written(tmp_path, content))) == 2


@pytest.mark.parametrize("dtype", sorted(DTYPE_BYTES))
def test_the_library_knows_every_dtype_by_the_same_size(tmp_path: Path, dtype: str) -> None:
    size = DTYPE_BYTES[dtype]
    content = container({"a": entry(dtype, (3,), (0, 3 * size))}, DATA[: 3 * size])
    assert safetensors.deserialize(content)[0][1]["dtype"] == dtype
    assert read_header(written(tmp_path, content))[0].nbytes == 3 * size


ENTRY = json.dumps(entry())
MALFORMED: dict[str, bytes] = {
    "empty file": b"",
    "shorter than the length": b"\x02\0\0",
    "length alone": (2).to_bytes(8, "little"),
    "length zero": container(b"", b"", 0),
    "length beyond the file": container(GOOD, length=10_000),
    "length of 2^64 - 1": container(GOOD, length=2**64 - 1),
    "length below the header": container(GOOD, length=20),
    "not JSON": container("{not json}"),
    "not UTF-8": container(b'{"\xff": 1}'),
    "UTF-16": container(json.dumps({"a": entry()}).encode("utf-16-le"), DATA[:8]),
    "a list": container([entry()]),
    "a space before the brace": container(" " + json.dumps({"a": entry()}), DATA[:8]),
    "a string": container('"{}"', b""),
    "nested a hundred thousand deep": container('{"a":' + "[" * 100_000),
    "a number of ten thousand digits": container(
        '{"a":{"dtype":"F32","shape":[' + "9" * 10_000 + '],"data_offsets":[0,8]}}'
    ),
    "the same name twice": container(f'{{"a":{ENTRY},"a":{ENTRY}}}', DATA[:8]),
    "the same field twice": container('{"a":{"dtype":"F32","shape":[3],"shape":[2],"data_offsets":[0,8]}}', DATA[:8]),
    "half a surrogate pair as a name": container(f'{{"\\ud800":{ENTRY}}}', DATA[:8]),
    "minus zero": container('{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}', DATA[:8]),
    "metadata that is no object": container({"__metadata__": [1], "a": entry()}, DATA[:8]),
    "metadata that is no text": container({"__metadata__": {"x": 1}, "a": entry()}, DATA[:8]),
    "an entry that is a list": container({"a": ["F32", [2], [0, 8]]}, DATA[:8]),
    "an entry that is null": container({"a": None}, b""),
    "no dtype": container({"a": {"shape": [2], "data_offsets": [0, 8]}}, DATA[:8]),
    "no shape": container({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, DATA[:8]),
    "no offsets": container({"a": {"dtype": "F32", "shape": [2]}}, DATA[:8]),
    "a dtype that is no text": container({"a": entry(dtype=["F32"])}, DATA[:8]),  # type: ignore[arg-type]
    "one offset": container({"a": entry(offsets=[8])}, DATA[:8]),
    "three offsets": container({"a": entry(offsets=[0, 8, 8])}, DATA[:8]),
    "offsets as an object": container({"a": entry(offsets={"0": 0, "8": 8})}, DATA[:8]),
    "offsets as text": container({"a": entry(offsets=["0", "8"])}, DATA[:8]),
    "an offset that is a fraction": container({"a": entry(offsets=[0.0, 8.0])}, DATA[:8]),
    "offsets backwards": container({"a": entry(offsets=[8, 0])}, DATA[:8]),
    "a shape that is a number": container({"a": entry(shape=2)}, DATA[:8]),
    "a shape that is text": container({"a": entry(shape="2")}, DATA[:8]),
    "a negative length": container({"a": entry(shape=[-1, -2])}, DATA[:8]),
    "a fraction as a length": container({"a": entry(shape=[2.0])}, DATA[:8]),
    "true as a length": container({"a": entry(shape=[2, True])}, DATA[:8]),
    "more elements than bytes": container({"a": entry(shape=[3])}, DATA[:8]),
    "fewer elements than bytes": container({"a": entry(shape=[1])}, DATA[:8]),
    "more elements than 64 bits count": container({"a": entry(shape=[2**40, 2**40], offsets=[0, 2**82])}),
    "such a shape, and a zero behind": container({"a": entry(shape=[2**40, 2**40, 0], offsets=[0, 0])}, b""),
    "a length beyond 64 bits": container({"a": entry(shape=[2**64, 0], offsets=[0, 0])}, b""),
    "a million lengths": container({"a": entry(shape=[2**62] * 1_000_000)}, DATA[:8]),
    "a hole at the start": container({"a": entry(offsets=[8, 16])}, DATA[:16]),
    "a hole between": container({"a": entry(), "b": entry(offsets=[12, 20])}, DATA[:20]),
    "an overlap": container({"a": entry(), "b": entry(offsets=[4, 12])}, DATA[:12]),
    "two tensors in one place": container({"a": entry(), "b": entry()}, DATA[:8]),
    "bytes behind the last tensor": container({"a": entry()}, DATA[:9]),
    "a file cut short": container({"a": entry()}, DATA[:7]),
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_damaged_file_is_refused_with_its_name_and_a_hint(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_header(written(tmp_path, content))
    assert "model.safetensors" in caught.value.message
    assert len(caught.value.message) < 1000
    assert "download" in caught.value.hint


def test_a_dtype_that_localq_does_not_know_is_not_called_damage(tmp_path: Path) -> None:
    content = container({"scale": entry("F8_E8M0", (8,))}, DATA[:8])
    assert safetensors.deserialize(content)
    with pytest.raises(UnsupportedModelError, match="scale.*F8_E8M0"):
        read_header(written(tmp_path, content))


def test_the_message_about_a_truncated_file_has_both_lengths(tmp_path: Path) -> None:
    content = container({"a": entry()}, DATA[:7])
    with pytest.raises(CheckpointError, match=rf"{len(content):,} bytes.*{len(content) + 1:,}"):
        read_header(written(tmp_path, content))


def test_a_header_longer_than_the_format_allows_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, (100_000_001).to_bytes(8, "little"))
    with file.open("r+b") as stream:
        stream.truncate(100_000_100)  # a hole on the disk, not 100 MB
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_header(file)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for file in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match=file.name):
            read_header(file)


ODD_VALUES = st.one_of(
    st.sampled_from([-1, 0, 1, 2, 4, 8, 2**32, 2**63, 2**64, 1.0, True, None, "", "F16", [], {}, [0, 8], [2, 0]]),
    st.integers(0, 24),
)
PLACES = [(name, *rest) for name in ("a", "b", "c") for rest in ((), ("dtype",), ("shape",), ("data_offsets",))]
PLACES += [(name, field, i) for name in ("a", "b") for field in ("shape", "data_offsets") for i in (0, 1)]


@st.composite
def changed_headers(draw: st.DrawFn) -> bytes:
    header: Any = json.loads(json.dumps({**GOOD, "c": entry("U8", [0, 3], [24, 24])}))
    for place in draw(st.lists(st.sampled_from(PLACES), max_size=3)):
        parent = header
        for step in place[:-1]:
            parent = parent[step] if isinstance(parent, dict) and step in parent else {}
        fits = isinstance(parent, list) and isinstance(place[-1], int) and place[-1] < len(parent)
        if isinstance(parent, dict) or fits:
            parent[place[-1]] = deepcopy(draw(ODD_VALUES))  # the next change may go into it
    return json.dumps(header).encode()


@st.composite
def changed_files(draw: st.DrawFn) -> bytes:
    header = bytearray(draw(changed_headers()))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(header) - 1))
        piece = draw(
            st.one_of(st.binary(max_size=2), st.sampled_from([b"-", b"NaN", b" ", b"1", b",", b'"', b"\\u00"]))
        )
        header[at : at + draw(st.integers(0, 2))] = piece
    return container(bytes(header), DATA[: draw(st.sampled_from([24, 24, 24, 23, 8, 0]))])


@settings(max_examples=400)
@given(changed_files())
def test_nothing_that_the_library_refuses_is_accepted(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = written(Path(folder), content)
        try:
            accepted = read_header(file)
        except CheckpointError:
            return
    expected = dict(safetensors.deserialize(content))
    assert {tensor.name: list(tensor.shape) for tensor in accepted} == {n: e["shape"] for n, e in expected.items()}
    for tensor in accepted:
        assert content[tensor.offset : tensor.offset + tensor.nbytes] == expected[tensor.name]["data"]


def test_the_writer_of_the_other_tests_writes_what_the_library_reads(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for dtype in ("F32", "F16", "BF16"):
        file = tmp_path / f"{dtype}.safetensors"
        write_safetensors(file, {"x": values}, dtype)
        ((name, found),) = safetensors.deserialize(file.read_bytes())
        assert (name, found["dtype"], found["shape"]) == ("x", dtype, [2, 3])


def test_offsets_of_several_gigabytes_are_read(tmp_path: Path) -> None:
    size = 2**33
    header = {"a": entry("U8", [size], [0, size]), "b": entry("U8", [size], [size, 2 * size])}
    file = written(tmp_path, container(header, b""))
    header_bytes = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(header_bytes + 2 * size)  # a hole on the disk
    assert [tensor.offset for tensor in read_header(file)] == [header_bytes, header_bytes + size]
