"""Tokenizers from older files: ids must be those of the software that the files were made for."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from localq.errors import CheckpointError
from localq.text.token_bytes import TokenDecoder
from localq.text.tokenizer import HuggingFaceTokenizer, load_tokenizer
from localq.text.tokenizer_json import all_merges, read_tokenizer_json
from tests.hard_texts import MARKED_SCRIPTS, TEXTS
from tests.tiny_tokenizers import LLAMA_3_SPLIT, phi_2_backend, sentencepiece_model

DEMO = Path(__file__).parents[2] / "localq" / "demo"
HARD = [*TEXTS, *MARKED_SCRIPTS, "a" * 60, " " * 40, "=" * 81, "\t" * 20 + " x" * 20]


def write(folder: Path, **files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def llama(folder: Path, **config: Any) -> Path:
    """A folder with a SentencePiece model and tokenizer_config.json."""
    shutil.copy(DEMO / "toy-phi" / "tokenizer.model", folder)
    return write(folder, tokenizer_config={"tokenizer_class": "LlamaTokenizer", **config})


def token(content: str, **flags: bool) -> dict[str, Any]:
    return {
        **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False),
        **flags,
        "content": content,
    }


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_gives_the_same_ids(prefix: bool, tmp_path: Path) -> None:
    file = sentencepiece_model(tmp_path / "tokenizer.model", add_dummy_prefix=prefix)
    library, own = sentencepiece.SentencePieceProcessor(model_file=str(file)), load_tokenizer(tmp_path)
    for text in HARD:
        assert own.encode(text, add_special_tokens=True) == [library.bos_id(), *library.encode(text)], text
        assert own.decode(own.encode(text, add_special_tokens=True)) == text.replace("▁", " ")


_OPEN: dict[Path, tuple[sentencepiece.SentencePieceProcessor, HuggingFaceTokenizer]] = {}


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("llama"))


@settings(max_examples=300)
@given(
    text=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="<") | st.sampled_from("aeto ."), max_size=60
    )
)
def test_sentencepiece_gives_the_same_ids_for_any_text(llama_folder: Path, text: str) -> None:
    file = str(llama_folder / "tokenizer.model")
    if llama_folder not in _OPEN:
        _OPEN[llama_folder] = sentencepiece.SentencePieceProcessor(model_file=file), load_tokenizer(llama_folder)
    library, own = _OPEN[llama_folder]
    assert own.encode(text, add_special_tokens=False) == library.encode(text)


def test_what_is_made_from_a_model_equals_what_its_authors_published(tmp_path: Path) -> None:
    """The toy's tokenizer.json was made along with its model, as Phi-3's was."""
    source = DEMO / "toy-phi"
    for name in ("tokenizer.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        shutil.copy(source / name, tmp_path)
    made, original = read_tokenizer_json(tmp_path), read_tokenizer_json(source)
    assert {token["content"]: token["id"] for token in original["added_tokens"]}.items() <= made["model"][
        "vocab"
    ].items()
    assert [list(merge) for merge in original["model"]["merges"]] == made["model"]["merges"]
    for name in ("added_tokens", "normalizer", "decoder", "post_processor"):
        assert made[name] == original[name]


def test_tokens_of_the_folder_keep_their_ids_and_flags(tmp_path: Path) -> None:
    """Also with a gap between them, which the library alone would close."""
    decoder = {"2": token("<|im_end|>", special=True), "610": token("<far>", special=True, rstrip=True)}
    config = {"eos_token": "<|im_end|>", "additional_special_tokens": ["<listed>"]}
    folder = llama(tmp_path, added_tokens_decoder=decoder, **config)
    write(folder, added_tokens={"<listed>": 600, "<plain>": 601})
    own = load_tokenizer(folder)
    names = {"<|im_end|>": 2, "<listed>": 600, "<plain>": 601, "<far>": 610}
    assert {name: own.added_tokens[name] for name in names} == names
    assert own.encode("<far> \n<plain><|im_end|>", add_special_tokens=False) == [610, 601, 2]
    assert [own.token_bytes(token_id) for token_id in names.values()] == [b"", b"", b"<plain>", b""]
    assert own.token_id("</s>") is None


@pytest.mark.parametrize(
    ("config", "front", "behind"),
    [
        ({}, [1], []),
        ({"add_bos_token": False}, [], []),
        ({"add_eos_token": True, "eos_token": "</s>"}, [1], [2]),
        ({"bos_token": "</s>"}, [2], []),
    ],
)
def test_tokens_around_a_text_are_those_of_tokenizer_config(
    config: dict[str, Any], front: list[int], behind: list[int], tmp_path: Path
) -> None:
    own = load_tokenizer(llama(tmp_path, **config))
    ids = own.encode("Hello", add_special_tokens=False)
    assert own.encode("Hello", add_special_tokens=True) == [*front, *ids, *behind]


def test_a_folder_may_turn_off_the_space_in_front(tmp_path: Path) -> None:
    own = load_tokenizer(llama(tmp_path, add_prefix_space=False))
    assert own.token_bytes(own.encode("the", add_special_tokens=False)[0])[:1] == b"t"
    assert not own.strips_leading_space


def gpt_2(folder: Path) -> tokenizers.Tokenizer:
    """Phi-2's files without tokenizer.json; returns their vocabulary and merges."""
    backend = phi_2_backend()
    value = json.loads(backend.to_str())
    merges = "".join(f"{left} {right}\n" for left, right in value["model"]["merges"])
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    added = {entry["content"]: entry["id"] for entry in value["added_tokens"]}
    vocabulary = value["model"]["vocab"]
    vocabulary["<|endoftext|>"] = added.pop("<|endoftext|>")  # as in GPT-2's own file
    special = ["<|user|>", "<|end|>"]
    config = {"tokenizer_class": "CodeGenTokenizer", "additional_special_tokens": special}
    write(folder, vocab=vocabulary, added_tokens=added, tokenizer_config=config)
    return backend


def test_gpt_2_files_give_the_ids_of_the_tokenizer_they_come_from(tmp_path: Path) -> None:
    backend = gpt_2(tmp_path)
    own = load_tokenizer(tmp_path)
    for text in (*HARD, "<|user|> x <|endoftext|>\n<|end|>"):
        assert own.encode(text, add_special_tokens=True) == backend.encode(text).ids
        assert own.decode(own.encode(text, add_special_tokens=True)) == backend.decode(backend.encode(text).ids)
    plain = tokenizers.ByteLevelBPETokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    for text in ("Hello world, it's 12345", "def f(x):\n    return x"):
        if "  " not in text:
            assert own.encode(text, add_special_tokens=False) == plain.encode(text).ids


def byte_pairs(piece: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's merging, from its description: the pair whose join has the lowest rank, from the left."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while True:
        joins = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks]
        if not joins:
            return [ranks[part] for part in parts]
        _, place = min(joins)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


@pytest.fixture(scope="module")
def tiktoken_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, int]]:
    """As many ranks as cl100k_base has: bytes, the pieces of a small tokenizer, and pairs of bytes."""
    backend = phi_2_backend()
    decoder = TokenDecoder(byte_level=True)
    vocabulary = sorted(json.loads(backend.to_str())["model"]["vocab"].items(), key=lambda item: item[1])
    pieces = [decoder.token_bytes(text) for text, _ in vocabulary]
    singles, longer = [p for p in pieces if len(p) == 1], [p for p in pieces if len(p) > 1]
    assert len(singles) == 256
    pairs = [bytes((a, b)) for a in range(256) for b in range(256)]
    triples = [bytes((a, 1, b)) for a in range(0x80, 0x100) for b in range(256)] + [
        bytes((2, a, 3)) for a in range(256)
    ]
    order = dict.fromkeys(
        [*singles, *longer, *pairs, *triples, *(bytes((4, 4, a, b)) for a in range(9) for b in range(256))]
    )
    ranks = {piece: rank for rank, piece in enumerate(list(order)[:100_256])}
    assert len(ranks) == 100_256
    folder = tmp_path_factory.mktemp("tiktoken")
    lines = (f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in ranks.items())
    (folder / "cl100k_base.tiktoken").write_text("".join(lines))
    decoder_ = {"100257": token("<|endoftext|>", special=True), "100266": token("<|end|>", special=True)}
    return write(folder, tokenizer_config={"added_tokens_decoder": decoder_, "bos_token": "<|endoftext|>"}), ranks


def test_tiktoken_gives_the_same_ids(tiktoken_folder: tuple[Path, dict[bytes, int]]) -> None:
    folder, ranks = tiktoken_folder
    own = load_tokenizer(folder)
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA_3_SPLIT), "isolated")
    for text in HARD:
        expected = [rank for part, _ in split.pre_tokenize_str(text) for rank in byte_pairs(part.encode(), ranks)]
        assert own.encode(text, add_special_tokens=True) == expected, text
        assert own.decode(expected) == text
    assert own.encode("<|user|>\n<|end|><|endoftext|>", add_special_tokens=False)[::2] == [100262, 100266]
    assert own.vocabulary_size == 100_352
    named = {"<|dummy_id_2|>": 100256, "<|dummy_id_0|>": 100264, "<|dummy_id_11|>": 100275, "<|dummy_id_12|>": 100277}
    assert {name: own.added_tokens[name] for name in named} == named


def test_other_ranks_and_other_tokens_than_phi_3_smalls_are_refused(
    tiktoken_folder: tuple[Path, dict[bytes, int]], tmp_path: Path
) -> None:
    source = tiktoken_folder[0] / "cl100k_base.tiktoken"
    lines = source.read_text().splitlines(keepends=True)
    (tmp_path / source.name).write_text("".join(lines[:1000]))
    with pytest.raises(CheckpointError, match="has 1000 ranks"):
        read_tokenizer_json(tmp_path)
    shutil.copy(source, tmp_path)
    write(tmp_path, tokenizer_config={"added_tokens_decoder": {"100352": token("<|im_start|>", special=True)}})
    with pytest.raises(CheckpointError, match=r"'<\|im_start\|>' of id 100352"):
        read_tokenizer_json(tmp_path)


def test_a_piece_is_made_of_every_pair_of_others_that_fits() -> None:
    pieces = dict(enumerate(("a", "b", "c", "ab", "bc", "abc", "x")))
    order = {text: token_id for token_id, text in pieces.items() if text != "x"}
    assert all_merges(pieces, order) == [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]


def test_a_piece_of_absurd_length_is_refused(tmp_path: Path) -> None:
    """All its splits would be tried."""
    text = b"a" * 5_000_000
    message = b"\x0a" + _varint(len(text)) + text
    piece = b"\x0a" + _varint(len(message)) + message
    (tmp_path / "tokenizer.model").write_bytes(piece + b"\x12\x02\x18\x02" + b"\x1a\x02\x20\x00")
    with pytest.raises(CheckpointError, match="a piece of 5000000 characters"):
        read_tokenizer_json(tmp_path)


def _varint(value: int) -> bytes:
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def test_tokenizer_json_is_preferred_to_all_other_files(tmp_path: Path) -> None:
    gpt_2(llama(tmp_path))
    backend = phi_2_backend()
    backend.add_tokens(["<mine>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer_json(tmp_path) == json.loads(backend.to_str())


def test_two_tokens_of_one_text_are_refused(tmp_path: Path) -> None:
    folder = llama(tmp_path, added_tokens_decoder={"600": token("<s>", special=True)})
    with pytest.raises(CheckpointError, match="two tokens are '<s>'"):
        read_tokenizer_json(folder)


def test_a_beginning_token_that_is_not_in_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="bos_token is added to texts; it is '<start>'"):
        read_tokenizer_json(llama(tmp_path, bos_token="<start>"))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"600": "<x>"}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"-1": {"content": "<x>"}}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}'),
        ("tokenizer_config.json", '{"additional_special_tokens": 7}'),
        ("added_tokens.json", '{"<x>": "y"}'),
        ("added_tokens.json", '{"<x>": 99999999999999999999}'),
        ("vocab.json", '{"a": "b"}'),
        ("vocab.json", '{"a": null}'),
        ("merges.txt", "a b c\n"),
        ("merges.txt", b"\xff\xfe"),
    ],
)
def test_damaged_files_are_refused(file: str, content: str | bytes, tmp_path: Path) -> None:
    gpt_2(tmp_path)
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / file).write_bytes(data)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_tokenizer(tmp_path)


def test_a_folder_without_any_tokenizer_is_refused_with_the_files_that_localq_reads(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")  # half of GPT-2's pair
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json") as caught:
        read_tokenizer_json(tmp_path)
    for name in ("tokenizer.model", "vocab.json with merges.txt", "cl100k_base.tiktoken"):
        assert name in caught.value.hint
