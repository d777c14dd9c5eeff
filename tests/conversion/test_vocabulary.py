"""Tokenizers as GGUF metadata: llama.cpp must split every text as `tokenizers` does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from localq.conversion.convert import convert
from localq.conversion.vocabulary import TokenizerFolder, add_vocabulary, name_for_llama_cpp
from localq.errors import CheckpointError, OptionError
from localq.text.gguf_tokenizer import GgufTokenizer, load_gguf_tokenizer
from localq.text.tokenizer_json import read_tokenizer_json
from tests.hard_texts import MARKED_SCRIPTS, TEXTS
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_tokenizers import (
    CL100K_SPLIT,
    O200K_SPLIT,
    bpe_backend,
    byte_level_backend,
    phi_2_backend,
    sentencepiece_backend,
    sentencepiece_model,
    split_by,
    write_folder,
)

DEMO = Path(__file__).parents[2] / "localq" / "demo"
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
CODE_LLAMA_TOKENS = {32007: "▁<PRE>", 32008: "▁<SUF>", 32009: "▁<MID>", 32010: "▁<EOT>"}


def toy(name: str) -> Callable[[Path], Path]:
    return lambda folder: shutil.copytree(DEMO / name, folder, dirs_exist_ok=True)


def backend(made: tokenizers.Tokenizer) -> Callable[[Path], Path]:
    return lambda folder: write_folder(folder, made, {})


def toy_phi_without_its_model(folder: Path) -> Path:
    toy("toy-phi")(folder)
    (folder / "tokenizer.model").unlink()
    return folder


def sentencepiece_alone(folder: Path, **tokens: dict[str, Any]) -> Path:
    """In the manner of Llama 2, with nothing but `tokenizer.model` and tokenizer_config.json."""
    shutil.copy(DEMO / "toy-phi" / "tokenizer.model", folder)
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "added_tokens_decoder": tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def chat_ml(folder: Path) -> Path:
    names = {"600": "<|im_start|>", "601": "<|im_end|>", "602": "<tool call>"}
    added = {key: {**FLAGS, "content": text, "special": key == "601"} for key, text in names.items()}
    return sentencepiece_alone(folder, **added)


def code_llama(folder: Path) -> Path:
    added = {str(i): {**FLAGS, "content": text, "special": True} for i, text in CODE_LLAMA_TOKENS.items()}
    return sentencepiece_alone(folder, **added)


def without_prefix(folder: Path) -> Path:
    sentencepiece_model(folder / "tokenizer.model", add_dummy_prefix=False)
    return folder


def user_defined(folder: Path) -> Path:
    sentencepiece_model(folder / "tokenizer.model", user_defined_symbols=["<x>", "<yy>"])
    return folder


DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
KINDS: dict[str, tuple[Callable[[Path], Path], str, int]] = {
    "Llama 2": (sentencepiece_alone, "llama", 640),
    "Llama 2 with ChatML": (chat_ml, "llama", 640),
    "Llama 2 without a space in front": (without_prefix, "llama", 640),
    "Llama 2 with symbols of its own": (user_defined, "llama", 640),
    "CodeLlama": (code_llama, "llama", 32016),
    "Phi-3": (toy("toy-phi"), "phi3", 640),
    "Phi-3 without tokenizer.model": (toy_phi_without_its_model, "phi3", 640),
    "Llama 3": (toy("toy-llama"), "llama", 512),
    "Phi-4": (backend(bpe_backend(split_by(CL100K_SPLIT, "removed", True))), "phi3", 512),
    "Phi-4-mini": (backend(bpe_backend(split_by(O200K_SPLIT, "removed", True))), "phi3", 512),
    "Phi-2": (backend(phi_2_backend()), "phi2", 600),
    "SmolLM": (backend(bpe_backend(DIGITS)), "llama", 512),
}
"""How a folder is made, llama.cpp's architecture, and rows of the embedding."""


def gguf_of(folder: Path, architecture: str, size: int, file: Path, name: str = "x") -> GgufTokenizer:
    writer = gguf.GGUFWriter(file, architecture)
    add_vocabulary(writer, TokenizerFolder(folder), size)
    writer.add_name(name_for_llama_cpp(name, TokenizerFolder(folder)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return load_gguf_tokenizer(file)


def written(folder: Path, architecture: str = "llama", size: int = 768, pre: str | None = None) -> dict[str, Any]:
    """The metadata by their names without `tokenizer.ggml.`."""
    writer = gguf.GGUFWriter(None, architecture)
    add_vocabulary(writer, TokenizerFolder(folder), size, pre)
    return {key.removeprefix("tokenizer.ggml."): value.value for key, value in writer.kv_data[0].items()}


def tokenized(tokenizer: GgufTokenizer, text: str, parse_special: bool, framed: bool) -> list[int]:
    data = text.encode()
    ids = (llama_cpp.llama_token * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(tokenizer._vocabulary, data, len(data), ids, len(data) + 8, framed, parse_special)
    return list(ids[:count])


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_splits_hard_texts_as_tokenizers_does(kind: str, tmp_path: Path) -> None:
    make, architecture, size = KINDS[kind]
    folder = make(tmp_path)
    theirs = gguf_of(folder, architecture, size, tmp_path / "vocabulary.gguf")
    own = tokenizers.Tokenizer.from_str(json.dumps(read_tokenizer_json(folder)))
    added = [token.content for token in own.get_added_tokens_decoder().values()][-12:]
    around = ("{}", "a{}b", " a {} b ", "{}\n\nx", "x\t{}  {} y", "{}{}")
    texts = [*TEXTS, *MARKED_SCRIPTS, *(text.replace("{}", token) for token in added for text in around)]
    # Not marked as special in tokenizer.json, but special for llama.cpp and its converter.
    exceptions = ("</s>", "<|im_start|>")
    for parse_special in (True, False):
        own.encode_special_tokens = not parse_special
        for text in texts:
            if parse_special or not any(token in text for token in exceptions):
                expected = own.encode(text, add_special_tokens=False).ids
                assert tokenized(theirs, text, parse_special, framed=False) == expected, text
    own.encode_special_tokens = False
    for text in TEXTS:
        assert tokenized(theirs, text, True, framed=True) == own.encode(text, add_special_tokens=True).ids


def test_code_llama_names_its_end_of_text(tmp_path: Path) -> None:
    """As llama.cpp's converter; the other three of its tokens llama.cpp finds by their text."""
    metadata = written(code_llama(tmp_path), size=32016)
    assert metadata["eot_token_id"] == 32010
    assert [metadata["tokens"][i].decode() for i in CODE_LLAMA_TOKENS] == list(CODE_LLAMA_TOKENS.values())
    model = gguf_of(tmp_path, "llama", 32016, tmp_path / "vocabulary.gguf")._vocabulary
    assert llama_cpp.llama_vocab_eot(model) == 32010
    found = (llama_cpp.llama_vocab_fim_pre, llama_cpp.llama_vocab_fim_suf, llama_cpp.llama_vocab_fim_mid)
    assert [find(model) for find in found] == [32007, 32008, 32009]


def test_another_model_of_code_llamas_size_has_no_such_token(tmp_path: Path) -> None:
    assert "eot_token_id" not in written(chat_ml(tmp_path), size=32016)


@pytest.mark.parametrize(
    ("stated", "prefix", "expected"),
    [(None, True, None), (True, True, True), (None, False, False), (False, False, False), (True, False, False)],
)
def test_space_in_front_is_that_of_tokenizer_json(
    stated: bool | None, prefix: bool, expected: bool | None, tmp_path: Path
) -> None:
    """None stands for llama.cpp's own habit, a space."""
    folder = sentencepiece_alone(tmp_path)
    value = read_tokenizer_json(folder)
    if not prefix:
        del value["normalizer"]["normalizers"][0]
    (folder / "tokenizer.json").write_text(json.dumps(value))
    (folder / "tokenizer_config.json").write_text(json.dumps({} if stated is None else {"add_prefix_space": stated}))
    assert written(folder).get("add_space_prefix") is expected


def test_a_chosen_pre_tokenizer_is_written_without_a_check(tmp_path: Path) -> None:
    strange = bpe_backend(split_by("x+"))
    strange.normalizer = tokenizers.normalizers.NFC()
    folder = write_folder(tmp_path, strange, {})
    with pytest.raises(CheckpointError, match="NFC"):
        written(folder)
    assert written(folder, pre="qwen2")["pre"] == "qwen2"
    with pytest.raises(OptionError, match="'qwen-2'"):
        written(folder, pre="qwen-2")


def test_a_sentencepiece_vocabulary_takes_no_pre_tokenizer_but_its_default(tmp_path: Path) -> None:
    strange = sentencepiece_backend()
    strange.normalizer = tokenizers.normalizers.NFKC()
    folder = write_folder(tmp_path, strange, {})
    with pytest.raises(CheckpointError, match="NFKC"):
        written(folder)
    assert written(folder, pre="default")["pre"] == "default"
    with pytest.raises(OptionError, match="'gpt-2'"):
        written(folder, pre="gpt-2")


def test_two_tokens_of_one_text_are_refused(tmp_path: Path) -> None:
    """llama.cpp would end the process. A zero byte ends a text there."""
    for texts in (("a\0b", "a\0c"), ("[PAD700]",)):
        made = byte_level_backend()
        made.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in texts])
        with pytest.raises(CheckpointError, match="for llama.cpp"):
            written(write_folder(tmp_path, made, {}))


def test_a_byte_level_token_without_a_row_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level_backend(), {})
    with pytest.raises(CheckpointError, match="'<plain tool>' of id 415; the model has 415 tokens"):
        written(folder, size=415)


def test_byte_level_tokens_that_look_special_are_control_tokens(tmp_path: Path) -> None:
    made = byte_level_backend()
    names = ["<|extra|>", "<｜User｜>", "<think>", "<pad>"]
    made.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in names])
    metadata = written(write_folder(tmp_path, made, {}))
    kinds = dict(zip(metadata["tokens"], metadata["token_type"], strict=True))
    assert [kinds[name.encode()] for name in names] == [3, 3, 4, 3]


@pytest.mark.parametrize(
    ("name", "rstrip", "expected"),
    [
        ("my-model", True, "my-model (Phi-3)"),
        ("Phi-3.5-mini-instruct", True, "Phi-3.5-mini-instruct"),
        ("my-phi3", True, "my-phi3"),
        ("my-model", False, "my-model"),
        ("llama-distilled-from-Phi-3.5", False, "llama-distilled-from-Phi 3.5"),
        ("PHI3-llama", False, "PHI 3-llama"),
    ],
)
def test_the_name_says_whether_tokens_remove_the_space_after_them(
    name: str, rstrip: bool, expected: str, tmp_path: Path
) -> None:
    texts = ["<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>"]
    tokens = [{"id": i, "content": text, "special": True, "rstrip": rstrip} for i, text in enumerate(texts)]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    assert name_for_llama_cpp(name, TokenizerFolder(tmp_path)) == expected


def test_a_name_with_which_llama_cpp_would_not_load_is_changed(tmp_path: Path) -> None:
    """It needs tokens of a Phi-3 that only its own vocabulary has."""
    folder = write_folder(tmp_path, byte_level_backend(), {})
    assert name_for_llama_cpp("phi-3-small", TokenizerFolder(folder)) == "phi 3-small"
    assert gguf_of(folder, "llama", 768, tmp_path / "vocabulary.gguf", "phi-3-small").vocabulary_size == 768


BOS, EOS = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("<|begin_of_text|>", "<|end_of_text|>"))
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


def framed(folder: Path, single: list[dict[str, Any]] | None, in_a_sequence: bool = False) -> Path:
    """A Llama 3 whose texts are framed so, whatever its tokenizer_config.json says."""
    made = byte_level_backend()
    write_folder(folder, made, {"add_bos_token": False, "add_eos_token": True, "bos_token": "<|eot_id|>"})
    names = [part["SpecialToken"]["id"] for part in single or () if "SpecialToken" in part]
    tokens = {name: {"id": name, "ids": [made.token_to_id(name)], "tokens": [name]} for name in names}
    step = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens}
    if single is None:
        step = {"type": "ByteLevel"}
    value = json.loads((folder / "tokenizer.json").read_text())
    value["post_processor"] = {"type": "Sequence", "processors": [step]} if in_a_sequence else step
    (folder / "tokenizer.json").write_text(json.dumps(value))
    return folder


@pytest.mark.parametrize(
    ("single", "bos", "eos"),
    [
        (None, False, False),
        ([BOS, TEXT], True, False),
        ([TEXT, EOS], False, True),
        ([BOS, TEXT, EOS], True, True),
        ([TEXT], False, False),
    ],
)
@pytest.mark.parametrize("in_a_sequence", [False, True])
def test_special_tokens_around_a_text_are_those_of_the_post_processor(
    single: list[dict[str, Any]] | None, bos: bool, eos: bool, in_a_sequence: bool, tmp_path: Path
) -> None:
    """Whatever tokenizer_config.json says: localq itself tokenizes by tokenizer.json alone."""
    metadata = written(framed(tmp_path, single, in_a_sequence))
    assert [metadata[f"add_{name}_token"] for name in ("bos", "eos", "sep")] == [bos, eos, False]
    made = byte_level_backend()
    assert metadata["bos_token_id"] == made.token_to_id("<|begin_of_text|>" if bos else "<|eot_id|>")
    assert not eos or metadata["eos_token_id"] == made.token_to_id("<|end_of_text|>")


@pytest.mark.parametrize("single", [[BOS, EOS, TEXT], [TEXT, BOS, EOS]])
def test_more_tokens_around_a_text_than_llama_cpp_can_add_are_refused(
    single: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="one token at each end"):
        written(framed(tmp_path, single))


def test_an_absurd_chat_template_json_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    (folder / "chat_template.json").write_text('{"a": [' + "[]," * 300_000 + "[]]}")
    with pytest.raises(CheckpointError, match=r"chat_template\.json can't be read as JSON: it holds more values"):
        convert(str(folder), ["gguf-q8_0"], models_dir=tmp_path / "models")
