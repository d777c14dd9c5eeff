"""Special files in the place of files of a checkpoint: none is read, none hangs, each is named with the reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import localq
from localq.disk import reason
from localq.errors import LocalqError
from localq.regular_files import open_regular, read_regular
from tests.torture.folders import SPECIAL

TOY = Path(localq.__file__).parent / "demo" / "toy-llama"
WHY = {
    "a named pipe": "it is a named pipe, not a regular file",
    "a socket": "it is a socket, not a regular file",
    "a folder": "it is a folder, not a regular file",
    "a dangling link": "it is a link to a file that is not there",
    "a circular link": "Too many levels of symbolic links",
    "a link to /dev/zero": "it is a device, not a regular file",
    "a link to /dev/tty": "it is a device, not a regular file",
    "a link to a folder": "it is a folder, not a regular file",
}


@pytest.mark.parametrize("kind", WHY)
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    SPECIAL[kind](tmp_path / "file")
    with pytest.raises(OSError, match=".") as raised:
        open_regular(tmp_path / "file")
    assert reason(raised.value) == WHY[kind]


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 7) == b"content"


def test_a_longer_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(OSError, match="1,099,511,627,776 bytes, more than 8"):
        read_regular(tmp_path / "file", 8)


def _convert(folder: Path) -> None:
    localq.convert(folder, ["gguf-q8_0"], models_dir=folder.parent / "models")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "kind", ["a named pipe", "a socket", "a dangling link", "a circular link", "a link to /dev/zero"]
)
@pytest.mark.parametrize("verb", [_convert, localq.load])
def test_a_special_file_of_a_checkpoint_is_named_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, verb: Callable[[Path], Any]
) -> None:
    monkeypatch.setenv("LOCALQ_MODELS", str(tmp_path / "models"))
    folder = tmp_path / "checkpoint"
    shutil.copytree(TOY, folder)
    (folder / name).unlink()
    SPECIAL[kind](folder / name)
    with pytest.raises(LocalqError) as raised:
        verb(folder)
    assert name in raised.value.message
    assert WHY[kind] in raised.value.message


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a link to /dev/zero"])
def test_a_gguf_file_that_is_none_is_named_with_the_reason(tmp_path: Path, kind: str) -> None:
    SPECIAL[kind](tmp_path / "model.gguf")
    with pytest.raises(LocalqError, match=f"model.gguf can't be read: {WHY[kind]}"):
        localq.load(tmp_path / "model.gguf")


def test_files_that_the_vocabulary_is_read_from_are_regular_ones(tmp_path: Path) -> None:
    """The gguf package opens what lies in the folder by itself."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(TOY, folder)
    os.mkfifo(folder / "chat_template.txt")
    (folder / "vocab.txt").symlink_to("vocab.txt")
    _convert(folder)
