"""A checkpoint's tokenizer as GGUF metadata.

llama.cpp knows two kinds for Llama and Phi: SentencePiece ("llama": pieces with scores) and byte-level BPE
("gpt2": pieces and merges, and the name of a pre-tokenizer rule). The pre-tokenizer is recognised by the
rule that `tokenizer.json` states, so that a fine-tune with added tokens is recognised like its base.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.errors import CheckpointError
from localq.json_files import read_json, read_optional_json

if TYPE_CHECKING:
    from gguf import GGUFWriter

# `enum llama_token_type` in llama.h
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6

_UNUSED_SCORE, _ADDED_SCORE = -10000.0, -1000.0  # llama.cpp's conventions for SentencePiece vocabularies

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA_3_RULE = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The same rule as tiktoken's cl100k_base spells it: `\s*` takes all line ends but the last one anyway.
_CL100K_RULE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_GPT_4O_RULE = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTIONS + "?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTIONS + "?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(slots=True)
class _Vocabulary:
    """Pieces by id, with what llama.cpp wants to know of each."""

    pieces: list[bytes]
    scores: list[float]
    types: list[int]

    @classmethod
    def of_unused(cls, size: int) -> _Vocabulary:
        pieces = [f"[PAD{token_id}]".encode() for token_id in range(size)]
        return cls(pieces, [_UNUSED_SCORE] * size, [_UNUSED] * size)

    def put(self, token_id: int, piece: bytes, score: float, kind: int) -> None:
        if token_id < len(self.pieces):
            self.pieces[token_id], self.scores[token_id], self.types[token_id] = piece, score, kind


def add_vocabulary(writer: GGUFWriter, folder: Path, vocabulary_size: int) -> None:
    """Write the tokenizer of a checkpoint folder into a GGUF header.

    Raises CheckpointError for a tokenizer of another kind, an unknown pre-tokenizer rule, or a malformed file.
    """
    with _malformed_files_named(folder):
        _add_vocabulary(writer, folder, vocabulary_size)


def _add_vocabulary(writer: GGUFWriter, folder: Path, vocabulary_size: int) -> None:
    from gguf import SpecialVocab

    tokenizer = read_json(folder / "tokenizer.json")
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE":
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} has a tokenizer of type {model.get('type')!r}",
            "localq writes GGUF vocabularies for BPE tokenizers, as Llama and Phi have them",
        )
    is_sentencepiece = bool(model.get("byte_fallback"))
    if is_sentencepiece:
        vocabulary = _sentencepiece_vocabulary(folder, tokenizer, vocabulary_size)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(vocabulary.pieces)
        writer.add_token_scores(vocabulary.scores)
    else:
        vocabulary = _byte_level_vocabulary(tokenizer, vocabulary_size)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre_tokenizer_name(tokenizer))
        writer.add_token_list(vocabulary.pieces)
    writer.add_token_types(vocabulary.types)
    with _quiet(SpecialVocab.__module__):
        special = SpecialVocab(folder, load_merges=not is_sentencepiece, n_vocab=vocabulary_size)
        if not is_sentencepiece and not special.merges:
            raise CheckpointError(f"{folder / 'tokenizer.json'} has no merges", "download tokenizer.json again")
        special.add_special_token = _framing(tokenizer)
        special.add_to_gguf(writer, quiet=True)
    prefix_space = read_optional_json(folder / "tokenizer_config.json").get("add_prefix_space")
    if isinstance(prefix_space, bool):
        writer.add_add_space_prefix(prefix_space)


def name_for_llama_cpp(name: str, folder: Path) -> str:
    """`general.name`: the model's name, marked as a Phi-3 where its special tokens swallow white space behind them.

    `tokenizer.json` states that per token (`rstrip`); a GGUF file can't, so llama.cpp goes by the name: it must
    contain "phi-3" or "phi3" (src/llama-vocab.cpp). A folder called otherwise would give other prompt tokens.
    """
    with _malformed_files_named(folder):
        added = read_json(folder / "tokenizer.json").get("added_tokens", [])
        swallows = any(token.get("rstrip") and token.get("special") for token in added)
    is_marked = "phi-3" in name.lower() or "phi3" in name.lower()
    return f"{name} (Phi-3)" if swallows and not is_marked else name


def pre_tokenizer_name(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer rule of a byte-level BPE `tokenizer.json`.

    Llama 3 and Phi-4 split alike; they differ in that Llama 3 takes a whole word that is in the vocabulary
    before it merges (`ignore_merges`), as llama.cpp does under the name `llama-bpe` and not under `dbrx`.
    """
    rule = _split_rule(tokenizer.get("pre_tokenizer") or {})
    # Possessive quantifiers (`?+`, `++`) are only a faster spelling of the same rules.
    plain = re.sub(r"(?<=[?+*])\+", "", rule)
    if plain in (_LLAMA_3_RULE, _CL100K_RULE):
        return "llama-bpe" if tokenizer["model"].get("ignore_merges") else "dbrx"
    if plain == _GPT_4O_RULE:
        return "gpt-4o"
    raise CheckpointError(
        f"tokenizer.json splits text by a rule that localq does not know: {rule or 'none'}",
        "an MLX form needs no such rule: --to mlx-4bit",
    )


def _framing(tokenizer: Mapping[str, Any]) -> dict[str, bool]:
    """Whether a text gets a special token in front (`bos`) and behind (`eos`).

    The post-processor of `tokenizer.json` alone decides, as in `tokenizers`: localq tokenizes by it, whatever
    `add_bos_token` of tokenizer_config.json says. `sep`, between the texts of a pair, has no use in a chat.
    """
    post_processor = tokenizer.get("post_processor") or {}
    for step in post_processor.get("processors", [post_processor]):
        if step.get("type") == "TemplateProcessing":
            single = step.get("single") or [{}]
            return {"bos": "SpecialToken" in single[0], "eos": "SpecialToken" in single[-1], "sep": False}
    return {"bos": False, "eos": False, "sep": False}


@contextmanager
def _malformed_files_named(folder: Path) -> Iterator[None]:
    """Files that other tools wrote are read without asking at each key whether it is there, and of which type."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"the tokenizer of {folder} can't be read as Hugging Face writes it: {error!r}",
            "download tokenizer.json and tokenizer_config.json again",
        ) from error


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """The gguf package logs its own reading of post-processors, which is not used here."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _split_rule(pre_tokenizer: Mapping[str, Any]) -> str:
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    rules = [step.get("pattern", {}).get("Regex", "") for step in steps if step.get("type") == "Split"]
    return "".join(rules) if len(rules) == 1 else ""


def _byte_level_vocabulary(tokenizer: Mapping[str, Any], size: int) -> _Vocabulary:
    vocabulary = _Vocabulary.of_unused(size)
    for piece, token_id in tokenizer["model"]["vocab"].items():
        vocabulary.put(token_id, piece.encode(), 0.0, _NORMAL)
    for token_id, piece, is_special in _added_tokens(tokenizer, {}, {}):
        vocabulary.put(token_id, piece.encode(), 0.0, _added_type(piece, is_special))
    return vocabulary


def _sentencepiece_vocabulary(folder: Path, tokenizer: Mapping[str, Any], size: int) -> _Vocabulary:
    vocabulary = _Vocabulary.of_unused(size)
    model_file = folder / "tokenizer.model"
    entries = _model_file_entries(model_file) if model_file.exists() else _merge_rank_entries(tokenizer)
    for token_id, (entry, score, kind) in enumerate(entries):
        vocabulary.put(token_id, entry.encode(), score, kind)
    added = read_optional_json(folder / "added_tokens.json")
    configured = read_optional_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    for token_id, piece, is_special in _added_tokens(tokenizer, added, configured):
        kind = _added_type(piece, is_special)
        text = piece.replace("▁", " ") if kind == _USER_DEFINED else piece
        vocabulary.put(token_id, text.encode(), _ADDED_SCORE, kind)
    return vocabulary


def _model_file_entries(file: Path) -> Iterator[tuple[str, float, int]]:
    """Pieces, scores and types of a SentencePiece model, by id."""
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise CheckpointError(f"{file} can't be read as a SentencePiece model", "download the file again") from error
    kinds = [
        (processor.IsUnknown, _UNKNOWN),
        (processor.IsControl, _CONTROL),
        (processor.IsUnused, _UNUSED),
        (processor.IsByte, _BYTE),
    ]
    for token_id in range(processor.vocab_size()):
        kind = next((kind for test, kind in kinds if test(token_id)), _NORMAL)
        yield processor.IdToPiece(token_id), processor.GetScore(token_id), kind


def _merge_rank_entries(tokenizer: Mapping[str, Any]) -> Iterator[tuple[str, float, int]]:
    """The same from `tokenizer.json` alone, where a fine-tune was saved without its SentencePiece model.

    SentencePiece merges the pair with the best score first, `tokenizers` the pair that stands first in
    `merges`; so a piece's score is the negated rank of the first merge that makes it.
    """
    model = tokenizer["model"]
    ranks: dict[str, int] = {}
    merges: list[str | list[str]] = model["merges"]
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    unknown = model.get("unk_token")
    special = {token["content"] for token in tokenizer.get("added_tokens", []) if token.get("special")}
    for piece, token_id in sorted(model["vocab"].items(), key=lambda item: int(item[1])):
        del token_id
        if piece == unknown:
            yield piece, 0.0, _UNKNOWN
        elif piece in special:
            yield piece, 0.0, _CONTROL
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            yield piece, 0.0, _BYTE
        else:
            yield piece, -float(ranks.get(piece, len(ranks))), _NORMAL


def _added_tokens(
    tokenizer: Mapping[str, Any], added: Mapping[str, int], configured: Mapping[str, Any]
) -> Iterator[tuple[int, str, bool]]:
    """Id, text and whether special, in rising authority: added_tokens.json, tokenizer_config, tokenizer.json."""
    for piece, token_id in added.items():
        yield int(token_id), piece, False
    for key, token in configured.items():
        yield int(key), token["content"], bool(token.get("special"))
    for token in tokenizer.get("added_tokens", []):
        yield int(token["id"]), token["content"], bool(token.get("special"))


def _added_type(piece: str, is_special: bool) -> int:
    """Some checkpoints forget to mark their control tokens special; `<|...|>` always is one."""
    if is_special or (piece.startswith("<|") and piece.endswith("|>")):
        return _CONTROL
    return _USER_DEFINED
