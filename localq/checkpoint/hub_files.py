"""Which files of a repository make the checkpoint that localq reads.

Knows names, and of the contents only the weight files that the index lists. Knows no hub and no network.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from localq.checkpoint.weights import INDEX_NAME, SINGLE_NAME
from localq.errors import DownloadError

_OTHER_WEIGHTS = frozenset((".bin", ".ckpt", ".gguf", ".h5", ".npz", ".onnx", ".pt", ".pth", ".safetensors"))


def require_checkpoint(repo: str, names: Collection[str]) -> None:
    """Refuse a repository that localq could not convert, before anything large is fetched.

    Raises DownloadError, which names what the repository has instead of safetensors.
    """
    if INDEX_NAME not in names and SINGLE_NAME not in names:
        kinds = sorted({PurePosixPath(name).suffix for name in names} & _OTHER_WEIGHTS)
        found = f"its weights are {', '.join(kinds)}" if kinds else "nor any other weights"
        raise DownloadError(
            f"{repo} has no {SINGLE_NAME}; {found}",
            "localq pulls checkpoints in safetensors; a .gguf file runs as it is once it is on this disk",
        )
    if "config.json" not in names:
        raise DownloadError(f"{repo} has no config.json", "look for the base model: this may be an adapter")
    if "tokenizer.json" not in names:
        raise DownloadError(f"{repo} has no tokenizer.json", "look for a repository of the model that has one")


def needed_names(repo: str, names: Collection[str], folder: Path) -> list[str]:
    """What to fetch of `names`; `folder` holds the index already, if there is one.

    The small files first, the weights last: a download that breaks off is then plainly incomplete.
    Raises DownloadError when the index names a file that the repository lacks.
    """
    weights = _weight_names(folder) if INDEX_NAME in names else {SINGLE_NAME}
    missing = sorted(weights.difference(names))
    if missing:
        raise DownloadError(f"{repo} lacks {missing[0]}, which its {INDEX_NAME} names", "its owner has to mend it")
    return sorted(name for name in names if _is_small_and_needed(name)) + sorted(weights)


def is_complete(folder: Path) -> bool:
    """Whether a folder has what any checkpoint has: configuration, tokenizer, every weight file.

    tokenizer_config.json counts as well: without it a chat template could be missing unnoticed.
    """
    try:
        weights = _weight_names(folder) if (folder / INDEX_NAME).is_file() else {SINGLE_NAME}
    except DownloadError:
        return False
    required = {"config.json", "tokenizer.json", "tokenizer_config.json"} | weights
    return all((folder / name).is_file() for name in required)


def _is_small_and_needed(name: str) -> bool:
    path = PurePosixPath(name)
    if len(path.parts) > 1 or (name.endswith(".index.json") and name != INDEX_NAME):
        return False
    return path.suffix in (".json", ".jinja") or name == "tokenizer.model"


def _weight_names(folder: Path) -> set[str]:
    try:
        names = set(json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))["weight_map"].values())
        if names and all(PurePosixPath(name).suffix == ".safetensors" for name in names):
            return names
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DownloadError(f"{folder / INDEX_NAME} can't be read: {error!r}") from error
    raise DownloadError(f"{folder / INDEX_NAME} names no .safetensors files")
