"""JSON of checkpoints, as strangers may have written it."""

from __future__ import annotations

from pathlib import Path

import pytest

from localq.errors import CheckpointError
from localq.json_files import read_json


def test_half_a_character_is_refused_and_a_whole_one_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(r'{"bos_token": "\ud83d\ude00"}')
    assert read_json(file) == {"bos_token": "😀"}
    for half in (r'{"bos_token": "\ud83d"}', r'{"\uDC00": 1}'):
        file.write_text(half)
        with pytest.raises(CheckpointError, match="config.json can't be read as JSON"):
            read_json(file)
