"""The content of a folder's `tokenizer.json`, also where the folder has only older files.

Those are of three kinds: `vocab.json` with `merges.txt` (GPT-2's format: Phi-1 to 2), `tokenizer.model`
(SentencePiece: Llama 1 and 2, Phi-3) and `cl100k_base.tiktoken` (Phi-3-small). An artifact always gets a
`tokenizer.json`. Nothing is encoded here: `localq.text.tokenizer` does that.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localq.errors import CheckpointError, LocalqError
from localq.json_files import MOST_TOKENIZER_BYTES, read_json, read_optional_json
from localq.regular_files import is_there, read_regular
from localq.text.sentencepiece_model import WORD_MARK, TokenType, read_sentencepiece_model
from localq.text.token_bytes import byte_alphabet
from localq.text.tokenizer_config import read_special_tokens, special_token_names

GPT2_FILES = ("vocab.json", "merges.txt")
SENTENCEPIECE_FILE = "tokenizer.model"
TIKTOKEN_FILE = "cl100k_base.tiktoken"
_SOURCES = (("tokenizer.json",), GPT2_FILES, (SENTENCEPIECE_FILE,), (TIKTOKEN_FILE,))
TOKENIZER_SOURCES = tuple(name for names in _SOURCES for name in names)
"""Every file that a tokenizer may be read from."""

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_MATCHED_WHOLE = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)

CL100K_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How tiktoken's cl100k_base splits a text, as Llama 3 and Phi-4 spell it in their tokenizer.json."""

_LONGEST_PIECE_CHARACTERS = 1000  # real vocabularies stay below 200; the time to find merges grows with the square
_CL100K_RANKS = 100_256
# Phi-3-small's own tokens and the unused ones between and after them, by id (tokenization_phi3_small.py). The
# unused ones are not numbered by id; they fill the vocabulary to 100,352.
_PHI_3_SMALL_TOKENS: dict[int, str] = {
    **dict(enumerate(("<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"), 100_257)),
    **dict(enumerate(("<|system|>", "<|user|>", "<|assistant|>"), 100_261)),
    **dict(zip((100_264, 100_265, 100_256), (f"<|dummy_id_{n}|>" for n in range(3)), strict=True)),
    100_266: "<|end|>",
    **{100_264 + number: f"<|dummy_id_{number}|>" for number in range(3, 12)},
    100_276: "<|endofprompt|>",
    **{100_265 + number: f"<|dummy_id_{number}|>" for number in range(12, 87)},
}


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether a folder with files of these names has a tokenizer that `read_tokenizer_json` reads."""
    return any(names_of_one.issubset(names) for names_of_one in map(set, _SOURCES))


def read_tokenizer_json(folder: Path) -> Mapping[str, Any]:
    """The content of `tokenizer.json`. It is parsed at every call, which takes 0.1 to 0.3 s for 128,000 tokens.

    A folder without that file gets what it would contain, made from `vocab.json` and `merges.txt`, else from
    `tokenizer.model`, else from `cl100k_base.tiktoken`, with the tokens of tokenizer_config.json and added_tokens.json.
    Raises CheckpointError when there is none of them, or when one is damaged or of an unknown kind.
    """
    if is_there(folder / "tokenizer.json"):
        return read_json(folder / "tokenizer.json")
    with malformed_tokenizers_named(folder):
        config = read_optional_json(folder / "tokenizer_config.json")
        return _assembled(folder, config, _parts(folder, config))


@contextmanager
def malformed_tokenizers_named(folder: Path) -> Iterator[None]:
    """Turn what goes wrong in reading a malformed tokenizer into a CheckpointError that names the folder.

    The readers don't check at each key whether it exists and has the right type.
    """
    try:
        yield
    except LocalqError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError, OSError) as error:
        raise CheckpointError(
            f"the tokenizer of {folder} can't be read as Hugging Face writes it: {error!r}",
            "download tokenizer.json, tokenizer_config.json and the files beside them again",
        ) from error


def _parts(folder: Path, config: Mapping[str, Any]) -> TokenizerParts:
    if all(is_there(folder / name) for name in GPT2_FILES):
        return gpt2_parts(folder, config)
    if is_there(folder / SENTENCEPIECE_FILE):
        return sentencepiece_parts(folder / SENTENCEPIECE_FILE, config)
    if is_there(folder / TIKTOKEN_FILE):
        return tiktoken_parts(folder / TIKTOKEN_FILE)
    raise CheckpointError(
        f"{folder} has no tokenizer.json",
        "download it from the original repository; localq can also read "
        f"{SENTENCEPIECE_FILE}, {' with '.join(GPT2_FILES)}, or {TIKTOKEN_FILE}",
    )


def _assembled(folder: Path, config: Mapping[str, Any], parts: TokenizerParts) -> dict[str, Any]:
    added = _added_tokens(folder, config, parts)
    # Added tokens stand in the vocabulary too: `tokenizers` would give the others new ids, without gaps.
    texts = parts.pieces | {token_id: token["content"] for token_id, token in added.items()}
    vocabulary = {text: token_id for token_id, text in sorted(texts.items())}
    if len(vocabulary) < len(texts):
        twice = next(text for token_id, text in texts.items() if vocabulary[text] != token_id)
        raise CheckpointError(
            f"{folder}: two tokens are {twice!r}", "download all tokenizer files from the same repository"
        )
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
        **parts.model,
    }
    made = (pair for pair in parts.merges if {*pair, "".join(pair)} <= vocabulary.keys())
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added[token_id] for token_id in sorted(added)],
        "normalizer": None,
        "pre_tokenizer": None,
        **parts.sections,
        "post_processor": _post_processor(folder, config, parts, vocabulary),
        "model": {**model, "vocab": vocabulary, "merges": [list(pair) for pair in made]},
    }


def _added_tokens(folder: Path, config: Mapping[str, Any], parts: TokenizerParts) -> dict[int, dict[str, Any]]:
    """Tokens that are matched whole, by id: of the source, of added_tokens.json and of tokenizer_config.json."""
    named = special_token_names(folder)
    found = {token_id: _token(token_id, {"content": text, "special": True}) for token_id, text in parts.special.items()}
    plain = {**parts.user_defined, **{i: text for i, text in parts.pieces.items() if text in named}}
    found |= {i: _token(i, {"content": text, "special": text in named}) for i, text in plain.items() if i not in found}
    listed = read_optional_json(folder / "added_tokens.json").items()
    more: dict[int, Mapping[str, Any]] = {int(i): {"content": text, "special": text in named} for text, i in listed}
    more |= {int(key): token for key, token in config.get("added_tokens_decoder", {}).items()}
    for token_id, token in more.items():
        text = token["content"]
        if not parts.takes_more_tokens and parts.special.get(token_id) != text:
            raise CheckpointError(
                f"{folder} adds a token {text!r} of id {token_id}, which the model does not have",
                "download tokenizer_config.json from the same repository",
            )
        found[token_id] = _token(token_id, token)
    return found


def _token(token_id: int, token: Mapping[str, Any]) -> dict[str, Any]:
    content = token["content"]
    if not isinstance(content, str) or not 0 <= token_id < 2**32:
        raise ValueError(f"added token {content!r} of id {token_id}")
    return {"id": token_id, "content": content, **{flag: bool(token.get(flag, False)) for flag in _FLAGS}}


def _post_processor(
    folder: Path, config: Mapping[str, Any], parts: TokenizerParts, vocabulary: Mapping[str, int]
) -> dict[str, Any] | None:
    """Adds the beginning-of-text token at the front and the end token at the end, as tokenizer_config.json says."""
    named = read_special_tokens(folder)
    text: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {}
    for name, own, adds in (("bos", parts.bos_token, parts.adds_bos), ("eos", parts.eos_token, False)):
        if not config.get(f"add_{name}_token", adds):
            continue
        token = named.get(f"{name}_token", own)
        if token is None or token not in vocabulary:
            raise CheckpointError(
                f"{folder}: a {name}_token is added to texts; it is {token!r}, which is not in the vocabulary",
                f"correct {name}_token in tokenizer_config.json",
            )
        tokens[token] = {"id": token, "ids": [vocabulary[token]], "tokens": [token]}
        text.insert(0 if name == "bos" else len(text), {"SpecialToken": {"id": token, "type_id": 0}})
    if not tokens:
        return None
    again = ({kind: {**part, "type_id": 1} for kind, part in step.items()} for step in text)
    pair = text + [step | {"Sequence": {"id": "B", "type_id": 1}} if "Sequence" in step else step for step in again]
    return {"type": "TemplateProcessing", "single": text, "pair": pair, "special_tokens": tokens}


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """A tokenizer as one kind of older files describes it."""

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
    """Used where the folder names no `bos_token`; in the same way `eos_token`."""
    eos_token: str | None = None
    adds_bos: bool = False
    """Whether a text begins with it where the folder does not state `add_bos_token`."""
    takes_more_tokens: bool = True
    """Whether the folder may add tokens."""


def sentencepiece_parts(file: Path, config: Mapping[str, Any]) -> TokenizerParts:
    """From a SentencePiece model: ids of a text are those that SentencePiece itself gives.

    A word mark is put before each piece of text between tokens that are matched whole, as in the
    `tokenizer.json` of Llama 2 and Phi-3. `legacy: false` in tokenizer_config.json changes nothing: those two
    state it too.
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
    """From `vocab.json` and `merges.txt`, which has a pair of pieces per line."""
    vocabulary_file, merges_file = (folder / name for name in GPT2_FILES)
    pieces = {int(token_id): text for text, token_id in read_json(vocabulary_file).items()}
    lines = read_regular(merges_file, MOST_TOKENIZER_BYTES).decode().split("\n")
    pairs = [line.rstrip("\r").split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    merges = [(left, right) for left, right in pairs]
    return TokenizerParts(pieces, merges, sections=_byte_level(config.get("add_prefix_space") is True, rule=None))


def tiktoken_parts(file: Path) -> TokenizerParts:
    """From tiktoken's cl100k_base as Phi-3-small uses it: per line a piece in base64 and its rank.

    Raises CheckpointError for any other list of ranks: its special tokens are not known.
    """
    characters = {byte: character for character, byte in byte_alphabet().items()}
    lines = (line.split() for line in read_regular(file, MOST_TOKENIZER_BYTES).splitlines() if line)
    bytes_of_rank = {int(rank): base64.b64decode(piece, validate=True) for piece, rank in lines}
    ranks = {"".join(map(characters.__getitem__, data)): rank for rank, data in bytes_of_rank.items()}
    pieces = {rank: piece for piece, rank in ranks.items()}
    if sorted(pieces) != list(range(_CL100K_RANKS)):
        raise CheckpointError(
            f"{file} has {len(ranks)} ranks that are not numbered from 0 to {_CL100K_RANKS - 1}",
            "it is not the file of Phi-3-small: download it again: `localq pull --verify REPO`",
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

    SentencePiece and tiktoken merge the pair that makes the best piece; `tokenizers` merges listed pairs.
    Pieces that are not in `order` are left out.
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


def _byte_level(add_prefix_space: bool, rule: str | None) -> dict[str, Any]:
    """Pre-tokenizer and decoder; without a rule ByteLevel splits by GPT-2's."""
    step = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": rule is None}
    steps: Iterable[dict[str, Any]] = [step]
    if rule is not None:
        steps = [{"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}, step]
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "decoder": {**step, "use_regex": True}}
