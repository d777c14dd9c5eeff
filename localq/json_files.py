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
        if r"\ud" in text.lower():  # an escaped surrogate: a pair is a character, half of one is no text
            json.dumps(value, ensure_ascii=False).encode()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} has no {path.name}", "give the folder that holds it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read as JSON: {error}", "download the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object", "download the file again")
    return value


def read_optional_json(path: Path) -> dict[str, Any]:
    """As `read_json`, and an empty object where there is no such file."""
    return read_json(path) if path.exists() else {}


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's `config.json`, with `text_config` brought to the top. Raises CheckpointError."""
    return text_config(read_json(folder / "config.json"))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the part of a model that writes text.

    Models that also see or hear keep it under `text_config`, whose keys count; what it leaves out stands beside it.
    The keys of the whole, such as `architectures` and `quantization`, stay where they are not in it.
    """
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config
