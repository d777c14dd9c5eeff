"""Small tokenizers of both kinds, made here: byte-level BPE as in Llama 3, SentencePiece as in Phi-3."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


# As Phi-4 has it in tiktoken's own spelling, and as Phi-4-mini has it.
CL100K_SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
O200K_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(rule: str, behavior: str = "isolated", invert: bool = False) -> pre_tokenizers.PreTokenizer:
    """A pre-tokenizer as Llama 3 and Phi-4 have it."""
    split = pre_tokenizers.Split(tokenizers.Regex(rule), behavior, invert)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def bpe_backend(pre_tokenizer: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    """A byte-level BPE with any pre-tokenizer; no token in front of a text."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(SENTENCES, trainer)
    backend.add_special_tokens(["<|endoftext|>", "<|user|>", "<|end|>"])
    return backend


def phi_2_backend() -> tokenizers.Tokenizer:
    """GPT-2's rule, and runs of white space as tokens of their own, as Phi-1, 1.5 and 2 have them."""
    backend = bpe_backend(pre_tokenizers.ByteLevel(add_prefix_space=False))
    backend.add_tokens([tokenizers.AddedToken(" " * count, normalized=True) for count in range(31, 1, -1)])
    backend.add_tokens([tokenizers.AddedToken("\t" * count, normalized=True) for count in range(9, 1, -1)])
    return backend


def sentencepiece_model(file: Path, **settings: Any) -> Path:
    """A SentencePiece model file, trained as Llama 2's was but for `settings`."""
    import sentencepiece

    defaults = {
        "model_type": "bpe",
        "vocab_size": 420,
        "byte_fallback": True,
        "character_coverage": 1.0,
        "split_digits": True,
        "allow_whitespace_only_pieces": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "pad_id": -1,
        "num_threads": 1,
        "minloglevel": 2,
    }
    with file.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES), model_writer=stream, **{**defaults, **settings}
        )
    return file
