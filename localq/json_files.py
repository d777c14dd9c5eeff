"""JSON objects from the files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from localq.disk import reason
from localq.errors import CheckpointError
from localq.regular_files import is_there, read_regular

MOST_TOKENIZER_BYTES = 64 << 20
"""Of a file of a tokenizer; the largest known, Gemma 3's, has 33 MB."""
_MOST_BYTES = 16 << 20
"""Of any other; the largest known, DeepSeek V3's index of 91,000 tensors, has 9 MB."""
_MOST_TOKENIZER_VALUES, _MOST_VALUES = 4_000_000, 250_000
"""Commas and brackets. Gemma 3 has 2 million, for pieces and halves of merges; DeepSeek V3's index has 91,000."""
_TOKENIZER_NAMES = ("tokenizer.json", "vocab.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises CheckpointError naming the file."""
    try:
        big = path.name in _TOKENIZER_NAMES
        data = read_regular(path, MOST_TOKENIZER_BYTES if big else _MOST_BYTES)
        if sum(map(data.count, (b",", b"[", b"{"))) > (_MOST_TOKENIZER_VALUES if big else _MOST_VALUES):
            raise ValueError("it holds more values than any model's")  # each of two bytes may take eighty in memory
        text = data.decode()
        value = json.loads(text)
        if r"\ud" in text.lower():  # an escaped surrogate: a pair is a character, half of one is not text
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}", "give the folder of the model, which has this file"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {reason(error)}", "download the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object", "download the file again")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """As `read_json`; an empty object where there is no such file."""
    return read_json(path) if is_there(path) else {}


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's `config.json`, with `text_config` brought to the top. Raises CheckpointError."""
    return text_config(read_json(folder / "config.json"))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the part of a model that writes text.

    Models that also read pictures or sound keep it under `text_config`. Its keys come first; keys that it does not
    have are those of the whole model, such as `architectures` and `quantization`.
    """
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config
