"""The older files of a tokenizer, read into the parts of a `tokenizer.json`.

Three kinds: `tokenizer.model` (SentencePiece: Llama 1 and 2, Phi-3), `vocab.json` with `merges.txt` (GPT-2's
format: Phi-1 to 2) and `cl100k_base.tiktoken` (Phi-3-small). Knows nothing of the tokens that a folder adds.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localq.errors import CheckpointError
from localq.json_files import read_json
from localq.text.sentencepiece_model import WORD_MARK, TokenType, read_sentencepiece_model
from localq.text.token_bytes import TokenDecoder

SENTENCEPIECE_FILE = "tokenizer.model"
GPT2_FILES = ("vocab.json", "merges.txt")
TIKTOKEN_FILE = "cl100k_base.tiktoken"

_MATCHED_WHOLE = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)

CL100K_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How tiktoken's cl100k_base splits a text, as Llama 3 and Phi-4 spell it in their tokenizer.json."""

_LONGEST_PIECE_CHARACTERS = 1000  # real vocabularies stay below 200; the time to find merges grows with the square
_CL100K_RANKS = 100_256
# Phi-3-small's own tokens and the dummies between and behind them, by id (tokenization_phi3_small.py). The
# dummies are numbered in the order in which the authors needed them, and fill the vocabulary to 100,352.
_PHI_3_SMALL_TOKENS: dict[int, str] = {
    **dict(enumerate(("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"), 100_257)),
    **dict(enumerate(("<|system|>", "<|user|>", "<|assistant|>"), 100_261)),
    **dict(zip((100_264, 100_265, 100_256), (f"<|dummy_id_{n}|>" for n in range(3)), strict=True)),
    100_266: "<|end|>",
    **{100_264 + number: f"<|dummy_id_{number}|>" for number in range(3, 12)},
    100_276: "<|endofprompt|>",
    **{100_265 + number: f"<|dummy_id_{number}|>" for number in range(12, 87)},
}


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """What a source says of a tokenizer."""

    pieces: dict[int, str]
    """The vocabulary by id."""
    merges: list[tuple[str, str]]
    """Pairs of pieces that make a third, the first to be merged first."""
    special: dict[int, str] = field(default_factory=dict)
    """Tokens that are matched whole and stand for no text, by id."""
    user_defined: dict[int, str] = field(default_factory=dict)
    """Tokens that are matched whole and stand for themselves, by id."""
    model: dict[str, Any] = field(default_factory=dict)
    """Settings of the BPE model, as `tokenizer.json` calls them."""
    sections: dict[str, Any] = field(default_factory=dict)
    """Normalizer, pre-tokenizer and decoder."""
    bos_token: str | None = None
    """Of the source itself; the folder's `bos_token` goes before it; likewise `eos_token`."""
    eos_token: str | None = None
    adds_bos: bool = False
    """Whether a text begins with it where the folder does not say."""
    takes_more_tokens: bool = True
    """Whether the folder may add tokens to those of the source."""


def sentencepiece_parts(file: Path, config: Mapping[str, Any]) -> TokenizerParts:
    """From a SentencePiece model: ids of a text are those that SentencePiece itself gives.

    A word mark stands in front of each stretch of text between tokens that are matched whole, as in the
    `tokenizer.json` of Llama 2 and Phi-3. `legacy: false` in tokenizer_config.json changes nothing: those two
    state it as well.
    """
    model = read_sentencepiece_model(file)
    has_prefix = model.adds_dummy_prefix and config.get("add_prefix_space") is not False
    texts = dict(enumerate(piece.text for piece in model.pieces))
    by_type = {kind: {i: p.text for i, p in enumerate(model.pieces) if p.type is kind} for kind in _MATCHED_WHOLE}
    scores = {piece.text: piece.score for piece in model.pieces if piece.type is TokenType.NORMAL}
    unknown = next(iter(by_type[TokenType.UNKNOWN].values()), None)
    has_bytes = any(piece.type is TokenType.BYTE for piece in model.pieces)
    marks: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": WORD_MARK}]
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": WORD_MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if has_prefix:
        marks.insert(0, {"type": "Prepend", "prepend": WORD_MARK})
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return TokenizerParts(
        texts,
        all_merges(texts, {text: -score for text, score in scores.items()}),
        special=by_type[TokenType.UNKNOWN] | by_type[TokenType.CONTROL],
        user_defined=by_type[TokenType.USER_DEFINED],
        model={"unk_token": unknown, "fuse_unk": True, "byte_fallback": has_bytes},
        sections={
            "normalizer": {"type": "Sequence", "normalizers": marks},
            "decoder": {"type": "Sequence", "decoders": steps},
        },
        bos_token=texts.get(model.bos_id),
        eos_token=texts.get(model.eos_id),
        adds_bos=True,
    )


def gpt2_parts(folder: Path, config: Mapping[str, Any]) -> TokenizerParts:
    """From `vocab.json` and `merges.txt`, a pair of pieces a line."""
    vocabulary_file, merges_file = (folder / name for name in GPT2_FILES)
    pieces = {int(token_id): text for text, token_id in read_json(vocabulary_file).items()}
    lines = merges_file.read_text(encoding="utf-8").split("\n")
    pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    merges = [(left, right) for left, right in pairs]
    return TokenizerParts(pieces, merges, sections=_byte_level(config.get("add_prefix_space") is True, rule=None))


def tiktoken_parts(file: Path) -> TokenizerParts:
    """From tiktoken's cl100k_base as Phi-3-small uses it: a piece in base64 and its rank a line.

    Raises CheckpointError for any other list of ranks: only of this one the special tokens are known.
    """
    characters = _byte_characters()
    lines = (line.split() for line in file.read_bytes().splitlines() if line)
    bytes_of_rank = {int(rank): base64.b64decode(piece, validate=True) for piece, rank in lines}
    ranks = {"".join(map(characters.__getitem__, data)): rank for rank, data in bytes_of_rank.items()}
    pieces = {rank: piece for piece, rank in ranks.items()}
    if sorted(pieces) != list(range(_CL100K_RANKS)):
        raise CheckpointError(
            f"{file} has {len(ranks)} ranks that are not numbered from 0 to {_CL100K_RANKS - 1}",
            "it is not the file of Phi-3-small: download it again",
        )
    merges = all_merges(pieces, ranks)
    sections = _byte_level(False, CL100K_RULE)
    return TokenizerParts(
        pieces,
        merges,
        special=_PHI_3_SMALL_TOKENS,
        sections=sections,
        bos_token="<|endoftext|>",
        takes_more_tokens=False,
    )


def all_merges(pieces: Mapping[int, str], order: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every split of a piece into two, the pieces with the lowest `order` first.

    SentencePiece and tiktoken merge whichever pair makes the best piece. `tokenizers` merges listed pairs.
    Pieces that `order` lacks neither are made nor take part.
    """
    ids = {text: token_id for token_id, text in pieces.items() if text in order}
    merges = []
    for text in sorted(ids, key=lambda text: (order[text], ids[text])):
        if len(text) > _LONGEST_PIECE_CHARACTERS:
            raise ValueError(f"a piece of {len(text)} characters")
        halves = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        splits = [(left, right) for left, right in halves if left in ids and right in ids]
        merges += sorted(splits, key=lambda split: (ids[split[0]], ids[split[1]]))
    return merges


def _byte_characters() -> dict[int, str]:
    """How GPT-2's alphabet writes each byte."""
    from tokenizers.pre_tokenizers import ByteLevel

    decoder = TokenDecoder(byte_level=True)
    return {decoder.token_bytes(character)[0]: character for character in ByteLevel.alphabet()}


def _byte_level(add_prefix_space: bool, rule: str | None) -> dict[str, Any]:
    """Pre-tokenizer and decoder; without a rule ByteLevel splits by its own, which is GPT-2's."""
    step = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": rule is None}
    steps: Iterable[dict[str, Any]] = [step]
    if rule is not None:
        steps = [{"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}, step]
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "decoder": {**step, "use_regex": True}}
