"""The tokens of a SentencePiece-style tokenizer (Llama 1 and 2, Phi-3) as llama.cpp wants them.

Texts, types and scores are those of llama.cpp's converter, which treats the two families differently:
`_create_vocab_sentencepiece` in conversion/base.py for Llama, `set_vocab` in conversion/phi.py for Phi.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from localq.conversion.pre_tokenizers import foreign_settings
from localq.conversion.token_table import TokenTable, looks_special
from localq.errors import CheckpointError
from localq.json_files import read_optional_json
from localq.text.sentencepiece_model import WORD_MARK, Piece, TokenType, read_sentencepiece_model

_ADDED_SCORE = -1000.0  # by llama.cpp's converter
_PREPEND = {"type": "Prepend", "prepend": WORD_MARK}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": WORD_MARK}


def sentencepiece_table(folder: Path, tokenizer: Mapping[str, Any], size: int, architecture: str) -> TokenTable:
    """The vocabulary of the `tokenizer.json` of a folder, with the scores of `tokenizer.model` where it is there."""
    is_phi = architecture.startswith("phi")
    table = TokenTable(size, drops_tokens_beyond=not is_phi)
    for token_id, piece in _pieces(folder, tokenizer):
        table.put(token_id, piece.text, piece.score, piece.type)
    for text, token_id in read_optional_json(folder / "added_tokens.json").items():
        if int(token_id) < size:  # the only ones that the converter leaves out for either family
            table.put(int(token_id), text, _ADDED_SCORE, TokenType.USER_DEFINED)
    configured = read_optional_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    for key, token in configured.items():
        table.put(int(key), *_added(token, is_phi))
    for token in tokenizer.get("added_tokens", []):
        text, score, kind = _added(token, is_phi)
        # Of Llama's tokens the other files have the last word, as far as they say that they are matched whole.
        if is_phi or not table.matches_whole(token["id"], text):
            table.put(token["id"], text, score, kind)
    return table


def adds_space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a text gets a word mark in front.

    With a `Metaspace` of the scheme `first` the beginning of a text alone does, in llama.cpp every stretch
    between special tokens. Raises CheckpointError for what llama.cpp would not do at all.
    """
    if foreign := foreign_settings(tokenizer):
        raise _not_alike(f"a BPE model with {foreign}")
    normalizer = tokenizer.get("normalizer") or {"normalizers": []}
    pre_tokenizer = tokenizer.get("pre_tokenizer")
    match normalizer.get("normalizers", [normalizer]), pre_tokenizer:
        case [[first, second], None] if first == _PREPEND and second == _REPLACE:
            return True
        case [[step], None] if step == _REPLACE:
            return False
        case [[], {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": str(scheme)}]:
            return scheme != "never"
    raise _not_alike(json.dumps({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}, ensure_ascii=False))


def _pieces(folder: Path, tokenizer: Mapping[str, Any]) -> Iterator[tuple[int, Piece]]:
    """The pieces with their ids, and with SentencePiece's own scores where its model is there and fits."""
    ids = tokenizer["model"]["vocab"]
    added = {token["id"] for token in tokenizer.get("added_tokens", [])}
    if (folder / "tokenizer.model").is_file():
        pieces = list(enumerate(read_sentencepiece_model(folder / "tokenizer.model").pieces))
        # A fine-tune may have a vocabulary of its own, and its base's model left beside it.
        if all(ids.get(piece.text) == token_id or token_id in added for token_id, piece in pieces):
            yield from pieces
            return
    yield from _pieces_by_merges(tokenizer)


def _pieces_by_merges(tokenizer: Mapping[str, Any]) -> Iterator[tuple[int, Piece]]:
    """The same from `tokenizer.json` alone, where a fine-tune was saved without its SentencePiece model.

    SentencePiece merges the pair with the best score first, `tokenizers` the pair that stands first in
    `merges`; so a piece's score is the negated rank of the first merge that makes it.
    """
    model = tokenizer["model"]
    ranks: dict[str, int] = {}
    merges: list[str | list[str]] = model["merges"]
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    special = {token["content"] for token in tokenizer.get("added_tokens", []) if token.get("special")}
    for text, token_id in model["vocab"].items():
        if text == (model.get("unk_token") or "<unk>"):
            yield token_id, Piece(text, 0.0, TokenType.UNKNOWN)
        elif text in special:
            yield token_id, Piece(text, 0.0, TokenType.CONTROL)
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            yield token_id, Piece(text, 0.0, TokenType.BYTE)
        else:
            yield token_id, Piece(text, -float(ranks.get(text, len(ranks))), TokenType.NORMAL)


def _added(token: Mapping[str, Any], is_phi: bool) -> tuple[str, float, TokenType]:
    text = token["content"]
    if token.get("special") or (not is_phi and looks_special(text)):
        return text, _ADDED_SCORE, TokenType.CONTROL
    return text if is_phi else text.replace(WORD_MARK, " "), _ADDED_SCORE, TokenType.USER_DEFINED


def _not_alike(what: str) -> CheckpointError:
    return CheckpointError(
        f"tokenizer.json prepares text in a way that llama.cpp has not: {what}",
        "an MLX form has no such limit: --to mlx-4bit; or have it as it is in llama.cpp: --pre-tokenizer default",
    )
