"""The sentences on tokenizers that a GGUF file can't hold completely."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localq.conversion.convert import ConversionListener, convert
from localq.conversion.tokenizer_caveats import gguf_tokenizer_caveats
from localq.conversion.vocabulary import TokenizerFolder
from tests.tiny_checkpoints import CONFIGS, write_checkpoint

METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


def change(folder: Path, file: str, **changes: Any) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(content | changes))


def caveats(folder: Path) -> tuple[str, ...]:
    return gguf_tokenizer_caveats(TokenizerFolder(folder))


@pytest.mark.parametrize("name", CONFIGS)
def test_usual_tokenizers_have_none(name: str, tmp_path: Path) -> None:
    assert caveats(write_checkpoint(tmp_path / "model", name)) == ()


def test_metaspace_is_described_as_transformers_5_writes_it(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-2")
    change(folder, "tokenizer.json", normalizer=None, pre_tokenizer=METASPACE)
    (caveat,) = caveats(folder)
    assert "Metaspace" in caveat
    change(folder, "tokenizer_config.json", add_prefix_space=False)
    assert any("add_prefix_space" in caveat for caveat in caveats(folder))


@pytest.mark.parametrize(("name", "trait"), [("llama-3", "rstrip"), ("llama-3", "lstrip"), ("phi-3.5", "single_word")])
def test_traits_of_added_tokens_are_listed_by_name(tmp_path: Path, name: str, trait: str) -> None:
    folder = write_checkpoint(tmp_path / "model", name)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    added[-1][trait] = True
    change(folder, "tokenizer.json", added_tokens=added)
    (caveat,) = caveats(folder)
    assert added[-1]["content"] in caveat and trait in caveat


def test_convert_gives_them_only_for_gguf(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-2")
    change(folder, "tokenizer.json", normalizer=None, pre_tokenizer=METASPACE)
    told: list[str] = []

    class Listener(ConversionListener):
        def on_caveat(self, caveat: str) -> None:
            told.append(caveat)

    convert(folder, ["mlx-4bit"], models_dir=tmp_path / "models", listener=Listener())
    assert told == []
    convert(folder, ["gguf-q8_0"], models_dir=tmp_path / "models", listener=Listener())
    assert len(told) == 1
