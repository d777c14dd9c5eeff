"""What errors quote from files of strangers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localq.checkpoint.safetensors_header import read_header
from localq.checkpoint.weights import find_weights
from localq.errors import CheckpointError, LocalqError, shown


def test_a_name_is_escaped_and_cut() -> None:
    assert shown("\x1b[2Jname\n\u202e") == r"\x1b[2Jname\n\u202e"
    assert shown("x" * 80) == "x" * 80
    assert shown("a" * 50 + "b" * 10**6) == "a" * 40 + "... (1,000,050 characters) ..." + "b" * 40


def test_control_characters_reach_no_terminal_and_new_lines_stay() -> None:
    error = LocalqError("one\ntwo \x1b]0;title\x07 ü 日本", "do \x9b this")
    assert error.message == str(error) == "one\ntwo \\x1b]0;title\\x07 ü 日本"
    assert error.hint == r"do \x9b this"
    assert len(LocalqError("x" * 10**7).message) < 5000


def _safetensors(file: Path, header: object) -> Path:
    raw = json.dumps(header).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw)
    return file


@pytest.mark.parametrize("name", ["n" * 10**6, "\x1b[31mred", "a\nb"])
def test_a_name_that_no_tensor_has_is_refused_escaped_and_cut(tmp_path: Path, name: str) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    with pytest.raises(CheckpointError, match=r"model\.safetensors has a tensor with the name") as raised:
        read_header(_safetensors(tmp_path / "model.safetensors", {name: entry}))
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 400


def test_300_000_empty_tensors_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    with pytest.raises(CheckpointError, match=r"model\.safetensors has"):
        read_header(_safetensors(tmp_path / "model.safetensors", {f"t{number}": entry for number in range(300_000)}))


@pytest.mark.parametrize(("name", "why"), [("\x1b[31mred", "which is not a file"), ("z" * 10**6, "does not have 1 of")])
def test_a_shard_of_such_a_name_is_refused_escaped_and_cut(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(CheckpointError, match=why) as raised:
        find_weights(tmp_path)
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 400
