"""Small tokenizers of both kinds: as Hugging Face folders, and as GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from tests.tiny_tokenizers import byte_level_backend, sentencepiece_backend, write_folder

TEXTS = [
    "",
    " ",
    "Hello world",
    "  two spaces, then a tab\tand\n\n\nnew lines \n ",
    "Zwölf Boxkämpfer, 3 € und 𝄞 (🦙🏽‍♀️) 日本語 naïve",
    "it's 1234567 o'clock; I'LL go",
    "a\u0000b \ufffd \u200b",
    "<0xE2> is not a byte here and Ġ is not a space",
]


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like Llama 3's."""
    config = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return write_folder(tmp_path_factory.mktemp("byte-level"), byte_level_backend(), config)


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like Phi-3's."""
    config = {
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
        "pad_token": None,
        "tokenizer_class": "LlamaTokenizerFast",
    }
    return write_folder(tmp_path_factory.mktemp("sentencepiece"), sentencepiece_backend(), config)


@pytest.fixture(params=["byte_level", "sentencepiece"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Each of the two in turn."""
    return request.getfixturevalue(f"{request.param}_folder")  # type: ignore[no-any-return]


def write_gguf(path: Path, folder: Path, chat_template: str | None, add_space_prefix: bool | None = None) -> Path:
    """A GGUF file with the vocabulary of `folder` and nothing else, as written by llama.cpp's converter."""
    import gguf

    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    is_byte_level = content["decoder"]["type"] == "ByteLevel"
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    added = backend.get_added_tokens_decoder()
    pieces = [backend.id_to_token(token_id) or "" for token_id in range(backend.get_vocab_size())]
    types = [_gguf_type(piece, added.get(token_id), gguf.TokenType) for token_id, piece in enumerate(pieces)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2" if is_byte_level else "llama")
    writer.add_token_list(pieces)
    writer.add_token_types(types)
    if is_byte_level:
        writer.add_tokenizer_pre("llama-bpe")
        writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    else:
        writer.add_tokenizer_pre("default")
        writer.add_token_scores([-float(token_id) for token_id in range(len(pieces))])
    writer.add_bos_token_id(backend.token_to_id("<|begin_of_text|>" if is_byte_level else "<s>"))
    writer.add_eos_token_id(backend.token_to_id("<|eot_id|>" if is_byte_level else "<|endoftext|>"))
    writer.add_add_bos_token(True)
    if add_space_prefix is not None:
        writer.add_add_space_prefix(add_space_prefix)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _gguf_type(piece: str, added: tokenizers.AddedToken | None, types: Any) -> int:
    if piece == "<unk>":
        return int(types.UNKNOWN)
    if added is not None:
        return int(types.CONTROL if added.special else types.USER_DEFINED)
    return int(types.BYTE if piece.startswith("<0x") else types.NORMAL)
