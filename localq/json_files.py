"""JSON objects from the files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from localq.errors import CheckpointError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises CheckpointError naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if r"\ud" in text.lower():  # an escaped surrogate: a pair is a character, half of one is not text
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}", "give the folder of the model, which has this file"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}", "download the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} does not hold a JSON object", "download the file again")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """As `read_json`; an empty object where there is no such file."""
    return read_json(path) if path.exists() else {}


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
