"""The oracle is llama.cpp's own set, for the same vocabulary in a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers

from localq.errors import CheckpointError
from localq.text.end_tokens import END_TOKEN_NAMES, end_tokens
from localq.text.gguf_tokenizer import gguf_end_tokens, load_gguf_tokenizer
from localq.text.tokenizer import load_tokenizer
from tests.text.conftest import write_gguf


def test_a_folder_ends_at_the_tokens_at_which_llama_cpp_ends(folder: Path, tmp_path: Path) -> None:
    found = end_tokens({}, {}, load_tokenizer(folder))
    gguf = write_gguf(tmp_path / "model.gguf", folder, chat_template=None)
    assert len(found) >= 3
    assert found == gguf_end_tokens(load_gguf_tokenizer(gguf))


@pytest.mark.parametrize("name", END_TOKEN_NAMES)
def test_llama_cpp_ends_at_each_name_too(byte_level_folder: Path, tmp_path: Path, name: str) -> None:
    backend = tokenizers.Tokenizer.from_file(str(byte_level_folder / "tokenizer.json"))
    backend.add_special_tokens([name])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.token_id(name) in end_tokens({}, {}, tokenizer)
    gguf = write_gguf(tmp_path / "model.gguf", tmp_path, chat_template=None)
    assert tokenizer.token_id(name) in gguf_end_tokens(load_gguf_tokenizer(gguf))


@pytest.mark.parametrize("pair", [("<|return|>", "<|call|>"), ("<|calls|>", "<|flush|>"), ("<|return|>", "<|flush|>")])
def test_the_end_of_a_part_does_not_end_a_reply_where_replies_have_their_own_end_token(
    byte_level_folder: Path, tmp_path: Path, pair: tuple[str, str]
) -> None:
    backend = tokenizers.Tokenizer.from_file(str(byte_level_folder / "tokenizer.json"))
    backend.add_special_tokens(["<|end|>", *pair])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    gguf = write_gguf(tmp_path / "model.gguf", tmp_path, chat_template=None)
    found = end_tokens({}, {}, tokenizer)
    assert {tokenizer.token_id(name) for name in pair} <= found
    assert (tokenizer.token_id("<|end|>") in found) == (pair == ("<|return|>", "<|flush|>"))
    assert found == gguf_end_tokens(load_gguf_tokenizer(gguf))


@pytest.mark.parametrize(
    ("config", "generation_config", "expected"),
    [
        ({}, {}, set()),
        ({"eos_token_id": 7}, {}, {7}),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": 9}, {7, 8, 9}),
        ({"eos_token_id": None}, {"eos_token_id": [9]}, {9}),
    ],
)
def test_both_configurations_add_their_tokens(
    folder: Path, config: dict[str, Any], generation_config: dict[str, Any], expected: set[int]
) -> None:
    tokenizer = load_tokenizer(folder)
    assert end_tokens(config, generation_config, tokenizer) == expected | end_tokens({}, {}, tokenizer)


def test_the_eos_token_of_the_tokenizer_is_an_end_token(byte_level_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((byte_level_folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|start_header_id|>"}', encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.token_id("<|start_header_id|>") in end_tokens({}, {}, tokenizer)


def test_an_ordinary_piece_with_the_text_of_an_end_token_ends_nothing(tmp_path: Path) -> None:
    vocabulary = {piece: number for number, piece in enumerate(["<", "/", "s", ">", "</", "s>", "</s>"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("<", "/"), ("s", ">"), ("</", "s>")]))
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("</s>", add_special_tokens=False) == [6]
    assert end_tokens({}, {}, tokenizer) == frozenset()


@pytest.mark.parametrize("value", ["</s>", -1, [1, "2"], 1.5, True, {}])
def test_an_eos_token_id_that_is_not_an_id_is_refused(folder: Path, value: object) -> None:
    with pytest.raises(CheckpointError, match="generation_config.json"):
        end_tokens({}, {"eos_token_id": value}, load_tokenizer(folder))
