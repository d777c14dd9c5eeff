"""The oracle is the special_tokens_map of transformers 5, which it gives to chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localq.errors import CheckpointError
from localq.text.tokenizer_config import read_special_tokens

ADDED_TOKENS = {"0": {"content": "<unk>", "special": True, "normalized": False, "lstrip": False, "rstrip": False}}


@pytest.mark.parametrize(
    ("config", "special_tokens_map"),
    [
        ({"bos_token": "<s>", "eos_token": "<|end|>"}, {}),
        (
            {
                "bos_token": "<s>",
                "eos_token": {"content": "<|end|>", "__type": "AddedToken"},
                "pad_token": None,
            },
            {},
        ),
        ({"eos_token": "</s>"}, {"eos_token": {"content": "<|end|>", "lstrip": False}, "bos_token": "<s>"}),
        (
            {"eos_token": "</s>", "added_tokens_decoder": ADDED_TOKENS},
            {"eos_token": "<|end|>", "bos_token": "<s>"},
        ),
        ({"tokenizer_class": "LlamaTokenizer", "eos_token": "<|end|>"}, {}),
        ({"tokenizer_class": "LlamaTokenizerFast"}, {"pad_token": "<|user|>"}),
        ({"tokenizer_class": "GPT2TokenizerFast"}, {}),
    ],
)
def test_the_special_tokens_are_those_of_transformers_5(
    sentencepiece_folder: Path, tmp_path: Path, config: dict[str, Any], special_tokens_map: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "tokenizer.json").write_bytes((sentencepiece_folder / "tokenizer.json").read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special_tokens_map), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert read_special_tokens(tmp_path) == AutoTokenizer.from_pretrained(tmp_path).special_tokens_map


def test_a_folder_without_the_files_names_no_special_token(tmp_path: Path) -> None:
    assert read_special_tokens(tmp_path) == {}


@pytest.mark.parametrize("content", ["[1]", "{", '{"eos_token": 5}', '{"eos_token": {"id": 5}}'])
def test_a_malformed_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json|eos_token"):
        read_special_tokens(tmp_path)
