"""Small tokenizers of both kinds, made here: folders as Hugging Face lays them out, and GGUF files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog doesn't mind at all.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich: 12345 mal!",
    "In the morning the children were walking along the river and the weather was warm.",
    "def main(): print('hello world')  # the same thing, over and over again",
] * 4

# How Llama 3 splits a text before merging; llama.cpp knows it as the pre-tokenizer `llama-bpe`.
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_3_SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>"]

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


def write_folder(folder: Path, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def beginning_of_text(backend: tokenizers.Tokenizer, token: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{token} $A",
        pair=f"{token} $A {token}:1 $B:1",
        special_tokens=[(token, backend.token_to_id(token))],
    )


def byte_level_backend() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA_3_SPLIT), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    backend.add_special_tokens(LLAMA_3_SPECIAL)
    backend.add_tokens([tokenizers.AddedToken("<plain tool>", normalized=False)])
    backend.post_processor = beginning_of_text(backend, "<|begin_of_text|>")
    return backend


def sentencepiece_backend() -> tokenizers.Tokenizer:
    trained = tokenizers.Tokenizer(models.BPE())
    marks = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.normalizer = marks
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # SentencePiece numbers merged pieces in the order of the merges, then the single characters.
    pieces += dict.fromkeys(a + b for a, b in model["merges"])
    pieces += sorted(piece for piece in model["vocab"] if len(piece) == 1)
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in model["merges"]]
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = marks
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>"])
    backend.add_tokens([tokenizers.AddedToken("</s>", normalized=False, rstrip=True)])
    backend.add_special_tokens(["<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"])
    backend.post_processor = beginning_of_text(backend, "<s>")
    return backend


@pytest.fixture(scope="session")
def byte_level_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the manner of Llama 3."""
    config = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot_id|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return write_folder(tmp_path_factory.mktemp("byte-level"), byte_level_backend(), config)


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the manner of Phi-3."""
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
    """A GGUF file with the vocabulary of `folder` and nothing else, by the rules of llama.cpp's converter."""
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
