"""The contents of a folder's `tokenizer.json`, also where the folder has older files in its stead.

An artifact always gets the file. Encodes nothing: `localq.text.tokenizer` does.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from localq.errors import CheckpointError, LocalqError
from localq.json_files import read_json, read_optional_json
from localq.text.tokenizer_config import read_special_tokens, special_token_names
from localq.text.tokenizer_sources import (
    GPT2_FILES,
    SENTENCEPIECE_FILE,
    TIKTOKEN_FILE,
    TokenizerParts,
    gpt2_parts,
    sentencepiece_parts,
    tiktoken_parts,
)

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


_SOURCES = (("tokenizer.json",), GPT2_FILES, (SENTENCEPIECE_FILE,), (TIKTOKEN_FILE,))
TOKENIZER_SOURCES = tuple(name for names in _SOURCES for name in names)
"""Every file that a tokenizer may be read from."""
_FILES_READ = (*TOKENIZER_SOURCES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether a folder with files of these names has a tokenizer that `read_tokenizer_json` reads."""
    return any(names_of_one.issubset(names) for names_of_one in map(set, _SOURCES))


def read_tokenizer_json(folder: Path) -> Mapping[str, Any]:
    """The content of `tokenizer.json`; do not change it, the next caller gets the same object.

    A folder without that file gets what it would contain, made from `vocab.json` and `merges.txt`, else from
    `tokenizer.model`, else from `cl100k_base.tiktoken`, with the tokens of tokenizer_config.json and added_tokens.json.
    The last result is kept until one of these files changes or `forget_tokenizer_json` is called. Raises
    CheckpointError when there is none of them, or when one is damaged or of an unknown kind.
    """
    return _read(folder, tuple(_size_and_time(folder / name) for name in _FILES_READ))


def forget_tokenizer_json() -> None:
    """Free what `read_tokenizer_json` keeps: 30 to 55 MB for 128,000 tokens."""
    _read.cache_clear()


@functools.lru_cache(maxsize=1)
def _read(folder: Path, _state: tuple[object, ...]) -> Mapping[str, Any]:
    if (folder / "tokenizer.json").is_file():
        return read_json(folder / "tokenizer.json")
    with malformed_tokenizers_named(folder):
        config = read_optional_json(folder / "tokenizer_config.json")
        return _assembled(folder, config, _parts(folder, config))


def _size_and_time(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:  # also of a file that may not be read: reading it gives the reason
        return None
    return found.st_size, found.st_mtime_ns


@contextmanager
def malformed_tokenizers_named(folder: Path) -> Iterator[None]:
    """Files that other tools wrote are read without asking at each key whether it is there, and of which type."""
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
    if all((folder / name).is_file() for name in GPT2_FILES):
        return gpt2_parts(folder, config)
    if (folder / SENTENCEPIECE_FILE).is_file():
        return sentencepiece_parts(folder / SENTENCEPIECE_FILE, config)
    if (folder / TIKTOKEN_FILE).is_file():
        return tiktoken_parts(folder / TIKTOKEN_FILE)
    raise CheckpointError(
        f"{folder} has no tokenizer.json",
        f"nor {SENTENCEPIECE_FILE}, nor {' with '.join(GPT2_FILES)}, nor {TIKTOKEN_FILE}: "
        "take one of them from the original repository",
    )


def _assembled(folder: Path, config: Mapping[str, Any], parts: TokenizerParts) -> dict[str, Any]:
    added = _added_tokens(folder, config, parts)
    # Ids of added tokens are kept in the vocabulary as well: `tokenizers` would number them anew, without gaps.
    texts = parts.pieces | {token_id: token["content"] for token_id, token in added.items()}
    vocabulary = {text: token_id for token_id, text in sorted(texts.items())}
    if len(vocabulary) < len(texts):
        twice = next(text for token_id, text in texts.items() if vocabulary[text] != token_id)
        raise CheckpointError(
            f"{folder}: two tokens are {twice!r}", "take all tokenizer files from the same repository"
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
    """Tokens that are matched whole, by id: the source's, those of added_tokens.json, and of tokenizer_config.json."""
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
                f"{folder} adds a token {text!r} of id {token_id}, which the model has not",
                "take tokenizer_config.json from the same repository",
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
    """Puts the beginning-of-text token in front and the end token behind, as tokenizer_config.json asks for."""
    named = read_special_tokens(folder)
    text: list[dict[str, Any]] = [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {}
    for name, own, adds in (("bos", parts.bos_token, parts.adds_bos), ("eos", parts.eos_token, False)):
        if not config.get(f"add_{name}_token", adds):
            continue
        token = named.get(f"{name}_token", own)
        if token is None or token not in vocabulary:
            raise CheckpointError(
                f"{folder}: texts get a {name}_token, and it is {token!r}, which is not in the vocabulary",
                f"correct {name}_token in tokenizer_config.json",
            )
        tokens[token] = {"id": token, "ids": [vocabulary[token]], "tokens": [token]}
        text.insert(0 if name == "bos" else len(text), {"SpecialToken": {"id": token, "type_id": 0}})
    if not tokens:
        return None
    again = ({kind: {**part, "type_id": 1} for kind, part in step.items()} for step in text)
    pair = text + [step | {"Sequence": {"id": "B", "type_id": 1}} if "Sequence" in step else step for step in again]
    return {"type": "TemplateProcessing", "single": text, "pair": pair, "special_tokens": tokens}
