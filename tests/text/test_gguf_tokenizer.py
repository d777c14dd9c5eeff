"""The oracles: the Hugging Face tokenizer that the file was written from, and llama.cpp's own detokenizer."""

from __future__ import annotations

import ctypes
import gc
import json
from pathlib import Path

import gguf
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from localq.errors import CheckpointError, EngineError, ModelNotFoundError, OptionError
from localq.text.gguf_tokenizer import GgufTokenizer, gguf_chat_template, load_gguf_tokenizer
from localq.text.text_stream import TextStream
from localq.text.tokenizer import Tokenizer, load_tokenizer
from tests.text.conftest import TEXTS, write_gguf
from tests.tiny_tokenizers import SENTENCES

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content }}é\n{% endfor %}" + "{# long #}" * 100


@pytest.fixture
def pair(folder: Path, tmp_path: Path) -> tuple[GgufTokenizer, Tokenizer]:
    """The same vocabulary, read from a GGUF file and from a folder."""
    path = write_gguf(tmp_path / "model.gguf", folder, TEMPLATE)
    return load_gguf_tokenizer(path), load_tokenizer(folder)


def llama_cpp_text(path: Path, ids: list[int]) -> str:
    import llama_cpp

    from localq.llama_log import captured_llama_log

    with captured_llama_log():
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    buffer = ctypes.create_string_buffer(4096)
    tokens = (llama_cpp.llama_token * len(ids))(*ids)
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    length = llama_cpp.llama_detokenize(vocabulary, tokens, len(ids), buffer, len(buffer), False, False)
    llama_cpp.llama_model_free(model)
    return buffer.raw[:length].decode()


def test_the_ids_are_those_of_the_folder(pair: tuple[GgufTokenizer, Tokenizer]) -> None:
    gguf, folder = pair
    for text in [*TEXTS, *SENTENCES, "Hi<|eot_id|><|end|><plain tool>there"]:
        for special in (True, False):
            expected = folder.encode(text, add_special_tokens=special)
            assert gguf.encode(text, add_special_tokens=special) == expected, text


def test_every_token_has_the_bytes_that_it_has_in_the_folder(pair: tuple[GgufTokenizer, Tokenizer]) -> None:
    gguf, folder = pair
    assert gguf.vocabulary_size == folder.vocabulary_size
    # llama.cpp makes every token named </s> a special one; Phi-3's folder has it as plain text.
    ids = [i for i in range(gguf.vocabulary_size) if i != folder.token_id("</s>")]
    assert [gguf.token_bytes(i) for i in ids] == [folder.token_bytes(i) for i in ids]


def test_an_id_without_a_token_adds_no_bytes(pair: tuple[GgufTokenizer, Tokenizer]) -> None:
    gguf, _ = pair
    assert gguf.token_bytes(gguf.vocabulary_size) == gguf.token_bytes(-1) == b""


def test_tokens_are_found_by_the_same_names(pair: tuple[GgufTokenizer, Tokenizer]) -> None:
    gguf, folder = pair
    assert gguf.added_tokens == folder.added_tokens
    assert gguf.token_id("Ġthe") == folder.token_id("Ġthe")
    assert gguf.token_id("▁the") == folder.token_id("▁the")
    assert gguf.token_id("no such token") is None


def test_the_special_tokens_of_the_file_are_named(pair: tuple[GgufTokenizer, Tokenizer]) -> None:
    gguf, folder = pair
    assert gguf.special_tokens == {name: folder.special_tokens[name] for name in ("bos_token", "eos_token")}


def test_text_is_decoded_as_by_llama_cpp(folder: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", folder, chat_template=None)
    tokenizer = load_gguf_tokenizer(path)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        stream = TextStream(tokenizer, strip_leading_space=tokenizer.strips_leading_space)
        streamed = "".join(map(stream.push, ids)) + stream.finish()
        assert streamed == tokenizer.decode(ids) == llama_cpp_text(path, ids) == text


@pytest.mark.parametrize("adds_space", [True, False])
def test_a_file_may_state_whether_a_space_is_put_in_front(
    sentencepiece_folder: Path, tmp_path: Path, adds_space: bool
) -> None:
    path = write_gguf(tmp_path / "model.gguf", sentencepiece_folder, None, add_space_prefix=adds_space)
    tokenizer = load_gguf_tokenizer(path)
    ids = tokenizer.encode("the dog", add_special_tokens=False)
    assert tokenizer.strips_leading_space == adds_space
    assert (ids[0] == tokenizer.token_id("▁the")) == adds_space
    assert tokenizer.decode(ids) == "the dog"


def test_the_chat_template_is_read_completely(pair: tuple[GgufTokenizer, Tokenizer]) -> None:
    assert gguf_chat_template(pair[0]) == TEMPLATE


def test_a_file_without_a_chat_template_has_none(folder: Path, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", folder, chat_template=None)
    assert gguf_chat_template(load_gguf_tokenizer(path)) is None


def test_half_a_surrogate_pair_is_refused(pair: tuple[GgufTokenizer, Tokenizer]) -> None:
    with pytest.raises(OptionError, match="not valid Unicode"):
        pair[0].encode("abc\ud83e", add_special_tokens=False)


def test_loading_writes_nothing_to_the_terminal(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_gguf_tokenizer(write_gguf(tmp_path / "model.gguf", folder, None))
    tokenizer.encode("Hello", add_special_tokens=True)
    del tokenizer
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="absent.gguf"):
        load_gguf_tokenizer(tmp_path / "absent.gguf")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a GGUF file at all, but long enough for a header"])
def test_a_damaged_file_is_refused_with_the_reason_of_llama_cpp(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"damaged\.gguf: .*(failed|error|invalid)"):
        load_gguf_tokenizer(path)


def test_a_unigram_vocabulary_is_read_as_by_its_tokenizer(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    vocabulary = json.loads(backend.to_str())["model"]["vocab"]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("t5")
    writer.add_token_list([piece for piece, _ in vocabulary])
    writer.add_token_scores([score for _, score in vocabulary])
    writer.add_token_types([3, 3, 2] + [1] * (len(vocabulary) - 3))
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_add_space_prefix(True)
    check_reads_as(written(writer, tmp_path / "model.gguf"), backend)


def test_a_wordpiece_vocabulary_is_read_as_by_its_tokenizer(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    pieces = [backend.id_to_token(number) or "" for number in range(backend.get_vocab_size())]
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tokenizer_model("bert")
    # As llama.cpp's converter writes them: the beginning of a word is marked, and not its continuation.
    starts = [piece if piece in special or piece.startswith("##") else f"▁{piece}" for piece in pieces]
    writer.add_token_list([piece.removeprefix("##") for piece in starts])
    writer.add_token_types([3, 2, 3, 3] + [1] * (len(pieces) - 4))
    check_reads_as(written(writer, tmp_path / "model.gguf"), backend)


def written(writer: gguf.GGUFWriter, path: Path) -> GgufTokenizer:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return load_gguf_tokenizer(path)


def check_reads_as(tokenizer: GgufTokenizer, backend: tokenizers.Tokenizer) -> None:
    for text in ("the dog", "the quick brown fox", "12345 mal", "x"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == backend.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == backend.decode(ids) == text


def test_a_file_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "bare.gguf", "llama")
    for add in (writer.add_block_count, writer.add_context_length, writer.add_embedding_length, writer.add_head_count):
        add(2)
    writer.add_feed_forward_length(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(8)
    writer.add_tokenizer_model("no_vocab")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"bare\.gguf has no vocabulary"):
        load_gguf_tokenizer(tmp_path / "bare.gguf")
