"""Reading SentencePiece models: against the library itself, and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from localq.errors import CheckpointError
from localq.text.sentencepiece_model import TokenType, read_sentencepiece_model
from tests.tiny_tokenizers import sentencepiece_model


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    symbols = {"user_defined_symbols": ["<x>"], "control_symbols": ["<c>"]}
    return sentencepiece_model(folder / "tokenizer.model", **symbols)


def test_pieces_are_those_of_the_library(model_file: Path) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    model = read_sentencepiece_model(model_file)
    ids = range(library.get_piece_size())
    assert [(p.text, p.score) for p in model.pieces] == [(library.id_to_piece(i), library.get_score(i)) for i in ids]
    for kind, is_of in (
        (TokenType.BYTE, library.is_byte),
        (TokenType.CONTROL, library.is_control),
        (TokenType.UNKNOWN, library.is_unknown),
    ):
        assert [p.type is kind for p in model.pieces] == [is_of(i) for i in ids]
    assert [p.text for p in model.pieces if p.type is TokenType.USER_DEFINED] == ["<x>"]
    assert (model.bos_id, model.eos_id) == (library.bos_id(), library.eos_id())


@pytest.mark.parametrize("settings_", [{"add_dummy_prefix": False}, {"bos_id": -1}, {"bos_id": 2, "eos_id": 1}])
def test_settings_are_those_of_the_training(settings_: dict[str, Any], tmp_path: Path) -> None:
    file = sentencepiece_model(tmp_path / "tokenizer.model", **settings_)
    library = sentencepiece.SentencePieceProcessor(model_file=str(file))
    model = read_sentencepiece_model(file)
    assert model.adds_dummy_prefix is settings_.get("add_dummy_prefix", True)
    assert (model.bos_id, model.eos_id) == (library.bos_id(), library.eos_id())


@pytest.mark.parametrize(
    ("settings_", "named"),
    [
        ({"model_type": "unigram", "vocab_size": 335}, "type is not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "replaces characters"),
        ({"remove_extra_whitespaces": True}, "drops repeated spaces"),
        ({"treat_whitespace_as_suffix": True}, "behind words"),
        ({"user_defined_symbols": ["▁▁▁▁"]}, "symbols hold word marks"),
    ],
)
def test_models_of_another_kind_are_refused(settings_: dict[str, Any], named: str, tmp_path: Path) -> None:
    file = sentencepiece_model(tmp_path / "tokenizer.model", **settings_)
    with pytest.raises(CheckpointError, match=named):
        read_sentencepiece_model(file)


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_and_never_crashes(model_file: Path, data: st.DataObject) -> None:
    content = bytearray(model_file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = model_file.with_name("damaged.model")
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read_sentencepiece_model(damaged)
    except CheckpointError as error:
        assert str(damaged) in error.message


@pytest.mark.parametrize(
    "content", [b"", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\xff" * 20, b"\x0b", b"IQ== 0\n"]
)
def test_a_file_that_is_not_a_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match="tokenizer.model"):
        read_sentencepiece_model(tmp_path / "tokenizer.model")
