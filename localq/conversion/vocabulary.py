"""A checkpoint's tokenizer as GGUF metadata.

llama.cpp has two kinds for Llama and Phi: SentencePiece ("llama": pieces with scores) and byte-level BPE
("gpt2": pieces and merges, and the name of a pre-tokenizer rule). localq itself tokenizes with `tokenizer.json`;
this metadata is for other programs. A tokenizer that they would run differently is refused.

Texts, types and scores of SentencePiece tokens are those of llama.cpp's converter, which treats the two families
differently: `_create_vocab_sentencepiece` in conversion/base.py for Llama, `set_vocab` in conversion/phi.py for Phi.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.conversion.pre_tokenizers import foreign_settings, pre_tokenizer_name, require_known_name
from localq.disk import temporary_folder
from localq.errors import CheckpointError, OptionError
from localq.json_files import MOST_TOKENIZER_BYTES, read_optional_json
from localq.text.sentencepiece_model import WORD_MARK, Piece, TokenType, read_sentencepiece_model
from localq.text.tokenizer_json import malformed_tokenizers_named, read_tokenizer_json

if TYPE_CHECKING:
    from gguf import GGUFWriter, SpecialVocab

_SENTENCEPIECE_PRE_TOKENIZER = "default"  # llama.cpp reads no other for this kind
_CODE_LLAMA_SIZE, _CODE_LLAMA_END_OF_TEXT = 32016, (32010, "▁<EOT>")
_UNUSED_SCORE, _ADDED_SCORE = -10000.0, -1000.0  # as llama.cpp's converter writes them

_PHI_3_NAME = re.compile(r"phi-?3", re.IGNORECASE)
_PHI_3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}

_SPECIAL_NAMES = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_SHAPES = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))

_PREPEND = {"type": "Prepend", "prepend": WORD_MARK}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": WORD_MARK}


class TokenizerFolder:
    """The tokenizer files of a checkpoint folder. `tokenizer.json` is parsed at first use, and only once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def json(self) -> Mapping[str, Any]:
        """The content of `tokenizer.json`; see `read_tokenizer_json`. Raises CheckpointError."""
        return read_tokenizer_json(self.folder)

    @property
    def added_tokens(self) -> list[dict[str, Any]]:
        """The tokens that are matched whole."""
        added: list[dict[str, Any]] = self.json.get("added_tokens", [])
        return added

    def other(self, name: str) -> dict[str, Any]:
        """Another JSON file of the folder; empty where there is none."""
        return read_optional_json(self.folder / name)

    @property
    def stated_prefix(self) -> bool | None:
        """`add_prefix_space` of tokenizer_config.json."""
        stated = self.other("tokenizer_config.json").get("add_prefix_space")
        return stated if isinstance(stated, bool) else None


@dataclass(slots=True)
class TokenTable:
    """The list of tokens in a GGUF file: text, score and type by id. As long as the embedding has rows."""

    size: int
    drops_tokens_beyond: bool = False
    """Whether a token without a row is left out. Else it is refused."""
    texts: list[bytes] = field(init=False)
    scores: list[float] = field(init=False)
    types: list[TokenType] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [f"[PAD{token_id}]".encode() for token_id in range(self.size)]
        self.scores = [_UNUSED_SCORE] * self.size
        self.types = [TokenType.UNUSED] * self.size

    def put(self, token_id: int, text: str, score: float, kind: TokenType) -> None:
        """Set a token, also in place of an earlier one. Raises CheckpointError where the model has no row for it."""
        if 0 <= token_id < self.size:
            self.texts[token_id], self.scores[token_id], self.types[token_id] = text.encode(), score, kind
        elif not self.drops_tokens_beyond:
            raise CheckpointError(
                f"the tokenizer has a token {text!r} of id {token_id}; the model has {self.size} tokens",
                "take config.json and the tokenizer's files from the same repository",
            )

    def matches_whole(self, token_id: int, text: str) -> bool:
        """Whether this token is set, as one that is found in a text before anything else."""
        is_set = 0 <= token_id < self.size and self.texts[token_id] == text.encode()
        return is_set and self.types[token_id] not in (TokenType.NORMAL, TokenType.UNUSED)

    def check(self) -> None:
        """Refuse two tokens of the same text: llama.cpp ends the process on them. It reads a text up to a zero byte."""
        ids: dict[bytes, int] = {}
        for token_id, text in enumerate(self.texts):
            read = text.partition(b"\0")[0] or f"[EMPTY_{token_id}]".encode()
            if ids.setdefault(read, token_id) != token_id:
                raise CheckpointError(
                    f"tokens {ids[read]} and {token_id} are both {read.decode(errors='replace')!r} for llama.cpp",
                    "MLX has no such limit: --to mlx-4bit",
                )


def add_vocabulary(
    writer: GGUFWriter, tokenizer: TokenizerFolder, vocabulary_size: int, pre_tokenizer: str | None = None
) -> None:
    """Write the tokenizer of a checkpoint into a GGUF header.

    `vocabulary_size` is the number of rows of the embedding. A `pre_tokenizer`, one of llama.cpp's names, is
    written without a check that llama.cpp then splits text as `tokenizers` does. Raises CheckpointError for a
    tokenizer of another kind, one that llama.cpp can't match, or a malformed file; OptionError for a name that
    llama.cpp does not know.
    """
    if pre_tokenizer is not None:
        require_known_name(pre_tokenizer)
    with malformed_tokenizers_named(tokenizer.folder):
        model = tokenizer.json["model"]
        if model.get("type") != "BPE":
            raise CheckpointError(
                f"{tokenizer.folder / 'tokenizer.json'} has a tokenizer of type {model.get('type')!r}",
                "localq writes GGUF vocabularies for BPE tokenizers, as Llama and Phi have them",
            )
        add = _add_sentencepiece if model.get("byte_fallback") else _add_byte_level
        table = add(writer, tokenizer, vocabulary_size, pre_tokenizer)
        _add_special_tokens(writer, tokenizer, table)


def name_for_llama_cpp(name: str, tokenizer: TokenizerFolder) -> str:
    """`general.name`: the model's name, marked as Phi-3 if its special tokens remove the white space after them.

    `tokenizer.json` states that per token (`rstrip`); a GGUF file can't, so llama.cpp decides by the name. One with
    "phi-3" or "phi3" in it (src/llama-vocab.cpp) gives the trait to all special tokens except Phi-3's `<unk>`, `<s>`
    and `<|endoftext|>`, and does not load without these and `</s>`. A model of that name without the trait, or
    without those tokens, is written "phi 3".
    """
    with malformed_tokenizers_named(tokenizer.folder):
        added = tokenizer.added_tokens
        known = {token["content"] for token in added}.union(tokenizer.json.get("model", {}).get("vocab", ()))
        removes_space = any(token.get("rstrip") and token.get("special") for token in added) and known >= _PHI_3_TOKENS
    if not removes_space:
        return _PHI_3_NAME.sub(lambda match: f"{match[0][:3]} 3", name)
    return name if _PHI_3_NAME.search(name) else f"{name} (Phi-3)"


def _add_byte_level(writer: GGUFWriter, tokenizer: TokenizerFolder, size: int, pre_tokenizer: str | None) -> TokenTable:
    table = TokenTable(size)
    for text, token_id in tokenizer.json["model"]["vocab"].items():
        table.put(token_id, text, 0.0, TokenType.NORMAL)
    for token in tokenizer.added_tokens:
        is_control = token.get("special") or _looks_special(token["content"])
        kind = TokenType.CONTROL if is_control else TokenType.USER_DEFINED
        table.put(token["id"], token["content"], 0.0, kind)
    table.check()
    merges = [_merge_line(merge) for merge in tokenizer.json["model"]["merges"]]
    if not merges:
        raise CheckpointError(f"{tokenizer.folder / 'tokenizer.json'} has no merges", "download tokenizer.json again")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer or pre_tokenizer_name(tokenizer.json, writer.arch))
    writer.add_token_list(table.texts)
    writer.add_token_types(table.types)
    writer.add_token_merges(merges)
    if tokenizer.stated_prefix is not None:  # then llama.cpp's converter writes the key
        writer.add_add_space_prefix(False)
    return table


def _add_sentencepiece(
    writer: GGUFWriter, tokenizer: TokenizerFolder, size: int, pre_tokenizer: str | None
) -> TokenTable:
    if pre_tokenizer not in (None, _SENTENCEPIECE_PRE_TOKENIZER):
        raise OptionError(
            f"{tokenizer.folder} has a SentencePiece tokenizer, for which there is no pre-tokenizer {pre_tokenizer!r}",
            f"leave the option out; such a vocabulary gets {_SENTENCEPIECE_PRE_TOKENIZER!r}",
        )
    table = sentencepiece_table(tokenizer, size, writer.arch)
    table.check()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre(_SENTENCEPIECE_PRE_TOKENIZER)
    writer.add_token_list(table.texts)
    writer.add_token_scores(table.scores)
    writer.add_token_types(table.types)
    stated = tokenizer.stated_prefix
    has_prefix = adds_space_prefix(tokenizer.json) if pre_tokenizer is None else stated is not False
    if stated is not None or not has_prefix:  # without the key, llama.cpp adds the space
        writer.add_add_space_prefix(has_prefix)
    return table


def sentencepiece_table(tokenizer: TokenizerFolder, size: int, architecture: str) -> TokenTable:
    """The vocabulary of a SentencePiece-style `tokenizer.json`, with the scores of a `tokenizer.model`."""
    is_phi = architecture.startswith("phi")
    table = TokenTable(size, drops_tokens_beyond=not is_phi)
    for token_id, piece in _pieces(tokenizer):
        table.put(token_id, piece.text, piece.score, piece.type)
    for text, token_id in tokenizer.other("added_tokens.json").items():
        if int(token_id) < size:  # the only ones that the converter leaves out for both families
            table.put(int(token_id), text, _ADDED_SCORE, TokenType.USER_DEFINED)
    for key, token in tokenizer.other("tokenizer_config.json").get("added_tokens_decoder", {}).items():
        table.put(int(key), *_added(token, is_phi))
    for token in tokenizer.added_tokens:
        text, score, kind = _added(token, is_phi)
        # For Llama the other files decide, where they have the token as one that is matched whole.
        if is_phi or not table.matches_whole(token["id"], text):
            table.put(token["id"], text, score, kind)
    return table


def adds_space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a text gets a word mark in front.

    With a `Metaspace` of the scheme `first` only the beginning of a text gets it, in llama.cpp every part between
    special tokens. Raises CheckpointError for what llama.cpp can't do at all.
    """
    if foreign := foreign_settings(tokenizer):
        raise _not_in_llama_cpp(f"a BPE model with {foreign}")
    normalizer = tokenizer.get("normalizer") or {"normalizers": []}
    pre_tokenizer = tokenizer.get("pre_tokenizer")
    match normalizer.get("normalizers", [normalizer]), pre_tokenizer:
        case [[first, second], None] if first == _PREPEND and second == _REPLACE:
            return True
        case [[step], None] if step == _REPLACE:
            return False
        case [[], {"type": "Metaspace", "replacement": "▁", "split": False, "prepend_scheme": str(scheme)}]:
            return scheme != "never"
    raise _not_in_llama_cpp(json.dumps({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}, ensure_ascii=False))


def _pieces(tokenizer: TokenizerFolder) -> Iterator[tuple[int, Piece]]:
    """The pieces with their ids, and with SentencePiece's own scores where its model exists and fits."""
    ids, added = tokenizer.json["model"]["vocab"], {token["id"] for token in tokenizer.added_tokens}
    if (tokenizer.folder / "tokenizer.model").is_file():
        pieces = list(enumerate(read_sentencepiece_model(tokenizer.folder / "tokenizer.model").pieces))
        # A fine-tune may have a vocabulary of its own, and the model of its base still beside it.
        if all(ids.get(piece.text) == token_id or token_id in added for token_id, piece in pieces):
            yield from pieces
            return
    yield from _pieces_by_merges(tokenizer)


def _pieces_by_merges(tokenizer: TokenizerFolder) -> Iterator[tuple[int, Piece]]:
    """The same from `tokenizer.json` alone, where a fine-tune was saved without its SentencePiece model.

    SentencePiece merges the pair with the best score first, `tokenizers` the pair that is first in
    `merges`; so the score of a piece is minus the rank of the first merge that makes it.
    """
    model = tokenizer.json["model"]
    ranks: dict[str, int] = {}
    merges: list[str | list[str]] = model["merges"]
    for rank, merge in enumerate(merges):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    special = {token["content"] for token in tokenizer.added_tokens if token.get("special")}
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
    if token.get("special") or (not is_phi and _looks_special(text)):
        return text, _ADDED_SCORE, TokenType.CONTROL
    return text if is_phi else text.replace(WORD_MARK, " "), _ADDED_SCORE, TokenType.USER_DEFINED


def _looks_special(text: str) -> bool:
    """Whether a token looks like a control token: some checkpoints forget to mark theirs as special.

    The rule of llama.cpp's converter (`does_token_look_special` in conversion/base.py).
    """
    has_shape = any(text.startswith(left) and text.endswith(right) for left, right in _SPECIAL_SHAPES)
    return has_shape or text in _SPECIAL_NAMES


def _not_in_llama_cpp(what: str) -> CheckpointError:
    return CheckpointError(
        f"tokenizer.json prepares text in a way that llama.cpp does not have: {what}",
        "MLX has no such limit: --to mlx-4bit; or accept llama.cpp's way: --pre-tokenizer default",
    )


def _merge_line(merge: str | list[str]) -> str:
    """A pair of pieces as in a merges file; a space within a piece is written in the byte alphabet."""
    return merge if isinstance(merge, str) else " ".join(part.replace(" ", "Ġ") for part in merge)


def _add_special_tokens(writer: GGUFWriter, tokenizer: TokenizerFolder, table: TokenTable) -> None:
    """Ids of the special tokens, which of them are added to a text, and the chat template."""
    special = _special_vocabulary(tokenizer, table.size)
    around = _tokens_around_a_text(tokenizer.json)
    special.special_token_ids |= around
    # In the order in which llama.cpp's converter learns of them.
    is_sep_last = "eos" in around or '"ByteLevel"' in json.dumps(tokenizer.json.get("post_processor"))
    names = ("bos", "eos", "sep") if is_sep_last else ("bos", "sep", "eos")
    special.add_special_token = {name: name in around and name != "sep" for name in names}
    end_of_text_id, end_of_text = _CODE_LLAMA_END_OF_TEXT
    if table.size == _CODE_LLAMA_SIZE and table.matches_whole(end_of_text_id, end_of_text):
        special.special_token_ids["eot"] = end_of_text_id
    special.add_to_gguf(writer, quiet=True)


def _tokens_around_a_text(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """The special tokens that a text gets in front (`bos`) and at its end (`eos`).

    The post-processor of `tokenizer.json` alone decides, as in `tokenizers`: localq tokenizes with it, whatever
    `add_bos_token` of tokenizer_config.json says. `sep`, between the texts of a pair, has no use in a chat.
    """
    post_processor = tokenizer.get("post_processor") or {}
    for step in post_processor.get("processors", [post_processor]):
        if step.get("type") == "TemplateProcessing":
            names = [part["SpecialToken"]["id"] if "SpecialToken" in part else None for part in step["single"]]
            before, after = names[: names.index(None)], names[names.index(None) + 1 :]
            ids = {name: step["special_tokens"][name]["ids"] for name in (*before, *after) if name is not None}
            if len(before) > 1 or len(after) > 1 or any(len(token_ids) != 1 for token_ids in ids.values()):
                raise CheckpointError(
                    f"tokenizer.json adds {', '.join(ids)} to a text; llama.cpp adds at most one token at each end",
                    "MLX has no such limit: --to mlx-4bit",
                )
            return {kind: ids[name[0]][0] for kind, name in (("bos", before), ("eos", after)) if name}
    return {}


def _special_vocabulary(tokenizer: TokenizerFolder, size: int) -> SpecialVocab:
    """What the gguf package reads from a folder: ids of special tokens, and the chat template.

    It gets a folder of links in which `tokenizer.json` is without its vocabulary: the package reads nothing of it,
    and parsing 128,000 tokens again takes time.
    """
    from gguf import SpecialVocab

    read_optional_json(tokenizer.folder / "chat_template.json")  # raises for one that would fill the memory
    with temporary_folder() as links:
        for file in tokenizer.folder.iterdir():
            if file.name != "tokenizer.json" and file.is_file() and file.stat().st_size <= MOST_TOKENIZER_BYTES:
                (links / file.name).symlink_to(file.resolve())
        (links / "tokenizer.json").write_text(json.dumps({**tokenizer.json, "model": {}}), encoding="utf-8")
        with malformed_tokenizers_named(tokenizer.folder), _quiet(SpecialVocab.__module__):
            return SpecialVocab(links, n_vocab=size)


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
