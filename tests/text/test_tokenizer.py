"""The oracle is the tokenizers library itself, on small tokenizers of both kinds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from localq.errors import CheckpointError, OptionError
from localq.text.tokenizer import HuggingFaceTokenizer, load_tokenizer
from tests.text.conftest import TEXTS


def library(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_the_ids_are_those_of_the_tokenizers_library(folder: Path) -> None:
    tokenizer, oracle = load_tokenizer(folder), library(folder)
    for text in TEXTS:
        for special in (True, False):
            expected = oracle.encode(text, add_special_tokens=special).ids
            assert tokenizer.encode(text, add_special_tokens=special) == expected


def test_the_beginning_of_text_token_is_added_only_on_request(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    beginning = tokenizer.token_id(tokenizer.special_tokens["bos_token"])
    assert tokenizer.encode("Hello", add_special_tokens=True)[0] == beginning
    assert beginning not in tokenizer.encode("Hello", add_special_tokens=False)


def test_special_tokens_written_in_the_text_are_recognized(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    eos = tokenizer.special_tokens["eos_token"]
    assert tokenizer.encode(f"Hello{eos}", add_special_tokens=False)[-1] == tokenizer.token_id(eos)


@pytest.mark.parametrize("add_bos_token", [True, False])
@pytest.mark.parametrize("has_post_processor", [True, False])
@pytest.mark.parametrize("tokenizer_class", ["LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_the_post_processor_alone_decides_what_is_added_as_in_transformers_5(
    sentencepiece_folder: Path,
    tmp_path: Path,
    tokenizer_class: str,
    has_post_processor: bool,
    add_bos_token: bool,
) -> None:
    from transformers import AutoTokenizer

    content = json.loads((sentencepiece_folder / "tokenizer.json").read_text(encoding="utf-8"))
    if not has_post_processor:
        content["post_processor"] = None
    config = json.loads((sentencepiece_folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config |= {"tokenizer_class": tokenizer_class, "add_bos_token": add_bos_token}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    ids = load_tokenizer(tmp_path).encode("Hello world", add_special_tokens=True)
    assert ids == AutoTokenizer.from_pretrained(tmp_path).encode("Hello world")
    assert (ids[0] == content["model"]["vocab"]["<s>"]) == has_post_processor


def test_truncation_and_padding_in_the_file_are_ignored(folder: Path, tmp_path: Path) -> None:
    backend = library(folder)
    backend.enable_truncation(4)
    backend.enable_padding(length=64)
    backend.save(str(tmp_path / "tokenizer.json"))
    text = "one two three four five six seven"
    expected = library(folder).encode(text, add_special_tokens=True).ids
    assert load_tokenizer(tmp_path).encode(text, add_special_tokens=True) == expected


def test_the_bytes_of_the_tokens_make_the_text(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    for text in TEXTS:
        joined = b"".join(map(tokenizer.token_bytes, tokenizer.encode(text, add_special_tokens=True)))
        if tokenizer.strips_leading_space:
            joined = joined.removeprefix(b" ")
        assert joined == text.encode()


def test_every_token_that_is_text_by_itself_is_decoded_as_by_the_library(folder: Path) -> None:
    tokenizer, oracle = load_tokenizer(folder), library(folder)
    ids = range(tokenizer.vocabulary_size)
    assert [tokenizer.decode([i]) for i in ids] == [oracle.decode([i]) for i in ids]


def test_text_is_decoded_as_by_the_library(folder: Path) -> None:
    tokenizer, oracle = load_tokenizer(folder), library(folder)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=True)
        assert tokenizer.decode(ids) == oracle.decode(ids) == text


@settings(max_examples=200)
@given(st.data())
def test_any_byte_level_ids_are_decoded_as_by_the_library(byte_level_folder: Path, data: st.DataObject) -> None:
    tokenizer, oracle = _loaded(byte_level_folder)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size + 3), max_size=12))
    assert tokenizer.decode(ids) == oracle.decode(ids)


@settings(max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<▁"), max_size=30))
def test_any_text_without_special_tokens_is_the_same_after_encoding_and_decoding(
    sentencepiece_folder: Path, text: str
) -> None:
    tokenizer, oracle = _loaded(sentencepiece_folder)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == oracle.decode(ids) == text


_OPEN: dict[Path, tuple[HuggingFaceTokenizer, tokenizers.Tokenizer]] = {}


def _loaded(folder: Path) -> tuple[HuggingFaceTokenizer, tokenizers.Tokenizer]:
    return _OPEN.setdefault(folder, (load_tokenizer(folder), library(folder)))


def test_byte_tokens_that_are_not_utf_8_become_one_replacement_character_per_error(
    sentencepiece_folder: Path,
) -> None:
    tokenizer = load_tokenizer(sentencepiece_folder)
    ids = [tokenizer.token_id(f"<0x{byte:02X}>") for byte in b"A\xe2\x82"]
    assert tokenizer.decode([i for i in ids if i is not None]) == b"A\xe2\x82".decode(errors="replace") == "A\ufffd"


def test_special_tokens_and_unused_ids_add_no_bytes(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    special = [i for i, token in library(folder).get_added_tokens_decoder().items() if token.special]
    assert special
    for token_id in [*special, tokenizer.vocabulary_size, -1]:
        assert tokenizer.token_bytes(token_id) == b""


def test_an_added_token_that_is_not_special_is_plain_text(byte_level_folder: Path) -> None:
    tokenizer = load_tokenizer(byte_level_folder)
    (token_id,) = tokenizer.encode("<plain tool>", add_special_tokens=False)
    assert tokenizer.token_bytes(token_id) == b"<plain tool>"
    assert tokenizer.added_tokens["<plain tool>"] == token_id


def test_an_added_token_outside_ascii_is_not_read_in_the_byte_alphabet(byte_level_folder: Path, tmp_path: Path) -> None:
    backend = library(byte_level_folder)
    backend.add_tokens(["<réponse>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("<réponse>", add_special_tokens=False)
    assert len(ids) == 1
    assert tokenizer.decode(ids) == "<réponse>"


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_the_metaspace_decoder_is_understood(sentencepiece_folder: Path, tmp_path: Path, scheme: str) -> None:
    backend = library(sentencepiece_folder)
    backend.decoder = tokenizers.decoders.Metaspace(prepend_scheme=scheme)
    backend.save(str(tmp_path / "tokenizer.json"))
    ids = backend.encode("the quick dog", add_special_tokens=False).ids
    assert load_tokenizer(tmp_path).decode(ids) == backend.decode(ids)


@pytest.mark.parametrize(
    "decoder",
    [
        None,
        tokenizers.decoders.WordPiece(),
        tokenizers.decoders.Strip(" ", 1, 0),
        tokenizers.decoders.Replace(tokenizers.Regex("a+"), "b"),
    ],
)
def test_an_unknown_decoder_is_refused(
    sentencepiece_folder: Path, tmp_path: Path, decoder: tokenizers.decoders.Decoder | None
) -> None:
    content = json.loads((sentencepiece_folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["decoder"] = decoder and json.loads(decoder.__getstate__())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match="decoder"):
        load_tokenizer(tmp_path)


def test_the_vocabulary_size_follows_from_the_largest_id(folder: Path) -> None:
    tokenizer, oracle = load_tokenizer(folder), library(folder)
    assert oracle.id_to_token(tokenizer.vocabulary_size - 1) is not None
    assert oracle.id_to_token(tokenizer.vocabulary_size) is None
    assert tokenizer.token_id("no such token") is None


def test_half_a_surrogate_pair_is_refused(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"'\\ud83e' at character 3"):
        load_tokenizer(folder).encode("abc\ud83e", add_special_tokens=False)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tokenizer.json") as caught:
        load_tokenizer(tmp_path)
    assert "original repository" in caught.value.hint


@pytest.mark.parametrize("content", [b"{}", b"not JSON", b"\xff\xfe"])
def test_a_damaged_tokenizer_json_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        load_tokenizer(tmp_path)


def test_an_end_of_text_token_that_is_not_in_the_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|nowhere|>"}', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"eos_token is '<\|nowhere\|>'"):
        load_tokenizer(tmp_path)
