"""The small JSON files beside `tokenizer.json`: which special tokens a checkpoint names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from localq.errors import CheckpointError
from localq.json_files import read_optional_json

NAMED_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""The names that special tokens have in chat templates, as in transformers."""

# What a tokenizer class of transformers uses where the folder names no token (its `__init__` defaults).
_CLASS_DEFAULTS: dict[str, dict[str, str]] = {
    "LlamaTokenizer": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    "CodeGenTokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
}


def read_special_tokens(folder: Path) -> dict[str, str]:
    """Special tokens by name (`bos_token`, `eos_token`, ...), as transformers 5 gives them to templates.

    From `special_tokens_map.json`, then from `tokenizer_config.json`; only from the latter where it has the newer
    `added_tokens_decoder` (`PreTrainedTokenizerBase._from_pretrained`). An entry is a string or an object with
    `content`; null names no token.
    """
    config = read_optional_json(folder / "tokenizer_config.json")
    tokenizer_class = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    entries: dict[str, Any] = {**_CLASS_DEFAULTS.get(tokenizer_class, {}), **config}
    source = "tokenizer_config.json"
    if "added_tokens_decoder" not in config:
        entries |= read_optional_json(folder / "special_tokens_map.json")
        source = "tokenizer_config.json or special_tokens_map.json"
    tokens = {}
    for name in NAMED_SPECIAL_TOKENS:
        entry = entries.get(name)
        content = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(content, str):
            tokens[name] = content
        elif entry is not None:
            raise CheckpointError(
                f"{folder}: {name} is {entry!r}, neither a string nor an object with content",
                f"correct it in {source}",
            )
    return tokens


def special_token_names(folder: Path) -> frozenset[str]:
    """All special tokens of a folder: the named ones and `additional_special_tokens`, which have no names."""
    files = (read_optional_json(folder / name) for name in ("tokenizer_config.json", "special_tokens_map.json"))
    others = [entry for file in files for entry in file.get("additional_special_tokens") or ()]
    contents = (entry.get("content") if isinstance(entry, dict) else entry for entry in others)
    return frozenset((*read_special_tokens(folder).values(), *(text for text in contents if isinstance(text, str))))
