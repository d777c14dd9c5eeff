"""JSON of checkpoints, as strangers may have written it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localq.errors import CheckpointError
from localq.json_files import read_config, read_json, text_config


def test_half_a_character_is_refused_and_a_whole_one_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(r'{"bos_token": "\ud83d\ude00"}')
    assert read_json(file) == {"bos_token": "😀"}
    for half in (r'{"bos_token": "\ud83d"}', r'{"\uDC00": 1}'):
        file.write_text(half)
        with pytest.raises(CheckpointError, match="config.json can't be read as JSON"):
            read_json(file)


@pytest.mark.parametrize(
    ("config", "merged"),
    [
        ({"vocab_size": 7}, {"vocab_size": 7}),
        ({"vocab_size": 7, "text_config": None}, {"vocab_size": 7, "text_config": None}),
        ({"vocab_size": 7, "text_config": []}, {"vocab_size": 7, "text_config": []}),
        (
            {"vocab_size": 7, "head_dim": 8, "text_config": {"vocab_size": 9}},
            {"vocab_size": 9, "head_dim": 8, "text_config": {"vocab_size": 9}},
        ),
    ],
)
def test_the_keys_of_a_text_config_come_first_and_null_is_none(
    tmp_path: Path, config: dict[str, Any], merged: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_config(tmp_path) == text_config(config) == merged


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "more values than any model's|recursion|can't be read as JSON"),
        (b'{"a": [' + b"[]," * 300_000 + b"1]}", "it holds more values than any model's"),
        (b'{"a": "' + b"x" * (17 << 20) + b'"}', "bytes, more than 16,777,216"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "can't be read as JSON"),
    ],
)
def test_json_of_absurd_size_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_json(file)


def test_a_large_tokenizer_is_read(tmp_path: Path) -> None:
    pairs = [[f"a{number}", "b"] for number in range(300_000)]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"merges": pairs}))
    assert len(read_json(tmp_path / "tokenizer.json")["merges"]) == 300_000
