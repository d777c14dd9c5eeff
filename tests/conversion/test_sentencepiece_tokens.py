"""Tokens of SentencePiece-style tokenizers: which file decides on text, type and score, for each family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from localq.conversion.vocabulary import TokenizerFolder, adds_space_prefix, sentencepiece_table
from localq.errors import CheckpointError
from localq.text.sentencepiece_model import TokenType
from localq.text.tokenizer_json import read_tokenizer_json
from tests.tiny_tokenizers import sentencepiece_model

SIZE = 440
ADDED = 420  # the first id behind the pieces
PREPEND = {"type": "Prepend", "prepend": "▁"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentencepiece_model(tmp_path_factory.mktemp("model") / "tokenizer.model")


def token(content: str, special: bool = False) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **flags, "special": special}


def write(folder: Path, model_file: Path, **files: dict[str, Any]) -> Path:
    """A folder with the model, its tokenizer.json with more `added_tokens`, and the other JSON files."""
    (folder / "tokenizer.model").write_bytes(model_file.read_bytes())
    value = read_tokenizer_json(folder)
    for token_id, added in files.pop("tokenizer", {}).items():
        value["added_tokens"].append({"id": int(token_id), **added})
    (folder / "tokenizer.json").write_text(json.dumps(value))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def rows(folder: Path, architecture: str, ids: range, size: int = SIZE) -> list[tuple[str, float, TokenType]]:
    table = sentencepiece_table(TokenizerFolder(folder), size, architecture)
    return [(table.texts[i].decode(), table.scores[i], table.types[i]) for i in ids]


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_pieces_have_the_scores_and_types_of_sentencepiece(architecture: str, model_file: Path, tmp_path: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    folder = write(tmp_path, model_file)
    expected = [(processor.id_to_piece(i), processor.get_score(i)) for i in range(3, ADDED)]
    found = rows(folder, architecture, range(3, SIZE))
    assert [row[:2] for row in found[: ADDED - 3]] == expected
    kinds = {processor.is_byte: TokenType.BYTE, processor.is_control: TokenType.CONTROL}
    for token_id, (_, _, kind) in enumerate(found[: ADDED - 3], 3):
        assert kind == next((type_ for test, type_ in kinds.items() if test(token_id)), TokenType.NORMAL)
    assert found[ADDED - 3 :] == [(f"[PAD{i}]", -10000.0, TokenType.UNUSED) for i in range(ADDED, SIZE)]


def test_the_families_take_added_tokens_differently(model_file: Path, tmp_path: Path) -> None:
    """As llama.cpp's converter: tokens that look special are so for Llama; Phi-3 knows only what is marked."""
    tokens = [token("<|im_start|>"), token("<|im_end|>", special=True), token("<tool>"), token("▁a▁b")]
    config = {"added_tokens_decoder": {str(ADDED + i): added for i, added in enumerate(tokens)}}
    listed = {"<listed>": ADDED + 4, "<|listed|>": ADDED + 5}
    folder = write(tmp_path, model_file, tokenizer_config=config, added_tokens=listed)
    llama, phi = (rows(folder, name, range(ADDED, ADDED + 6)) for name in ("llama", "phi3"))
    control, user = TokenType.CONTROL, TokenType.USER_DEFINED
    assert [(text, kind) for text, _, kind in llama] == [
        ("<|im_start|>", control), ("<|im_end|>", control), ("<tool>", user), (" a b", user),
        ("<listed>", user), ("<|listed|>", user),
    ]  # fmt: skip
    assert [(text, kind) for text, _, kind in phi] == [
        ("<|im_start|>", user), ("<|im_end|>", control), ("<tool>", user), ("▁a▁b", user),
        ("<listed>", user), ("<|listed|>", user),
    ]  # fmt: skip
    assert {score for _, score, _ in (*llama, *phi)} == {-1000.0}


def test_tokenizer_json_decides_for_phi_and_fills_gaps_for_llama(model_file: Path, tmp_path: Path) -> None:
    config = {"added_tokens_decoder": {str(ADDED): token("<tool>")}}
    both = {str(ADDED): token("<tool>", special=True), str(ADDED + 1): token("<own>", special=True)}
    folder = write(tmp_path, model_file, tokenizer_config=config, tokenizer=both)
    ids = range(ADDED, ADDED + 2)
    control, user = TokenType.CONTROL, TokenType.USER_DEFINED
    assert rows(folder, "phi3", ids) == [("<tool>", -1000.0, control), ("<own>", -1000.0, control)]
    assert rows(folder, "llama", ids) == [("<tool>", -1000.0, user), ("<own>", -1000.0, control)]


def test_tokens_without_a_row_are_left_out_for_llama_and_refused_for_phi(model_file: Path, tmp_path: Path) -> None:
    """Llama 2 with a padding token that its embedding never got is common; llama.cpp's converter does the same."""
    config = {"added_tokens_decoder": {str(ADDED): token("<pad>", special=True)}}
    folder = write(tmp_path, model_file, tokenizer_config=config, added_tokens={"<pad>": ADDED})
    assert rows(folder, "llama", range(ADDED - 1, ADDED), ADDED) == rows(folder, "llama", range(ADDED - 1, ADDED))
    with pytest.raises(CheckpointError, match=f"'<pad>' of id {ADDED}; the model has {ADDED} tokens"):
        rows(folder, "phi3", range(1), ADDED)


def test_a_model_file_of_another_vocabulary_is_not_used(model_file: Path, tmp_path: Path) -> None:
    folder = write(tmp_path, model_file)
    value = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = value["model"]["vocab"]
    first, second = (next(text for text, i in vocabulary.items() if i == number) for number in (300, 301))
    vocabulary[first], vocabulary[second] = 301, 300
    (folder / "tokenizer.json").write_text(json.dumps(value))
    assert [text for text, _, _ in rows(folder, "llama", range(300, 302))] == [second, first]


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "expected"),
    [
        pytest.param({"type": "Sequence", "normalizers": [PREPEND, REPLACE]}, None, True, id="Llama 2"),
        pytest.param({"type": "Sequence", "normalizers": [REPLACE]}, None, False, id="no prefix"),
        pytest.param(REPLACE, None, False, id="no prefix, no sequence"),
        pytest.param(None, METASPACE, True, id="transformers 5"),
        pytest.param(None, {**METASPACE, "prepend_scheme": "always"}, True, id="always"),
        pytest.param(None, {**METASPACE, "prepend_scheme": "never"}, False, id="never"),
    ],
)
def test_space_in_front_is_found(normalizer: object, pre_tokenizer: object, expected: bool) -> None:
    value = {"model": {}, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    assert adds_space_prefix(value) is expected


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, PREPEND, REPLACE]}}, "NFKC"),
        ({"normalizer": None}, '"normalizer"'),
        ({"normalizer": None, "pre_tokenizer": {**METASPACE, "split": True}}, "Metaspace"),
        ({"pre_tokenizer": {"type": "Digits"}}, "Digits"),
        ({"model": {"dropout": 0.5}}, "dropout 0.5"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(change: dict[str, Any], named: str) -> None:
    value = {"model": {}, "normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}}
    assert adds_space_prefix(value)
    with pytest.raises(CheckpointError, match=named) as caught:
        adds_space_prefix(value | change)
    assert "--pre-tokenizer default" in caught.value.hint
