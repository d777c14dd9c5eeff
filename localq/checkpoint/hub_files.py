"""Which files of a repository make the checkpoint that localq reads.

Knows names, and of the contents only the weight files that the index lists. Knows no hub and no network.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

from localq.checkpoint.hub_gguf import gguf_forms, there
from localq.checkpoint.weight_files import SAFETENSORS, TORCH, WeightFormat
from localq.errors import DownloadError
from localq.text.tokenizer_json import TOKENIZER_SOURCES, has_tokenizer

_WEIGHT_FORMATS = (SAFETENSORS, TORCH)  # the first one that a repository has is taken
_OTHER_WEIGHTS = frozenset((".bin", ".ckpt", ".gguf", ".h5", ".npz", ".onnx", ".pt", ".pth", ".safetensors"))


def has_weights(names: Collection[str]) -> bool:
    """Whether a repository has weights in a format that localq converts."""
    return _weight_format(names) is not None


def weight_format(repo: str, names: Mapping[str, int]) -> WeightFormat:
    """The format of a repository's weights; refuses one that localq could not convert, before anything is fetched.

    `names` come with sizes in bytes. Raises DownloadError, which names what the repository lacks, or has instead.
    """
    kind = _weight_format(names)
    if kind is None:
        forms = gguf_forms(names)
        if forms:
            raise DownloadError(
                f"{repo} holds .gguf files, which are forms already, and no checkpoint; {there(forms)}",
                f"name the one you want: {repo}:{forms[0].name}",
            )
        kinds = sorted({PurePosixPath(name).suffix for name in names} & _OTHER_WEIGHTS)
        found = f"its weights are {', '.join(kinds)}" if kinds else "nor any other weights"
        raise DownloadError(
            f"{repo} has no {SAFETENSORS.single_name}, no {TORCH.single_name}; {found}",
            "localq pulls checkpoints in Hugging Face format, MLX folders and .gguf files",
        )
    if "config.json" not in names:
        raise DownloadError(f"{repo} has no config.json", "look for the base model: this may be an adapter")
    if not has_tokenizer(names):
        raise DownloadError(
            f"{repo} has no tokenizer.json, nor another tokenizer", "look for a repository of the model that has one"
        )
    return kind


def needed_names(repo: str, names: Collection[str], kind: WeightFormat, folder: Path) -> list[str]:
    """What to fetch of `names`; `folder` holds the index already, if there is one.

    The small files first, the weights last: a download that breaks off is then plainly incomplete.
    Raises DownloadError when the index names a file that the repository lacks.
    """
    weights = _indexed_names(folder, kind) if kind.index_name in names else {kind.single_name}
    missing = sorted(weights.difference(names))
    if missing:
        raise DownloadError(f"{repo} lacks {missing[0]}, which its {kind.index_name} names", "its owner has to mend it")
    return sorted(name for name in names if _is_small_and_needed(name, kind)) + sorted(weights)


def is_complete(folder: Path) -> bool:
    """Whether a folder has what any checkpoint has: configuration, tokenizer, every weight file.

    tokenizer_config.json counts as well: without it a chat template could be missing unnoticed.
    """
    paths = list(folder.iterdir()) if folder.is_dir() else []
    if any(path.is_symlink() and not path.exists() for path in paths):  # something was taken out of the cache
        return False
    names = {path.name for path in paths if path.is_file()}
    if not names >= {"config.json", "tokenizer_config.json"} or not has_tokenizer(names):
        return False
    return any(_has_weights(folder, names, kind) for kind in _WEIGHT_FORMATS)


def _weight_format(names: Collection[str]) -> WeightFormat | None:
    return next((kind for kind in _WEIGHT_FORMATS if kind.index_name in names or kind.single_name in names), None)


def _has_weights(folder: Path, names: set[str], kind: WeightFormat) -> bool:
    if kind.index_name not in names:
        return kind.single_name in names
    try:
        return _indexed_names(folder, kind) <= names
    except DownloadError:
        return False


def _is_small_and_needed(name: str, kind: WeightFormat) -> bool:
    path = PurePosixPath(name)
    if len(path.parts) > 1 or (name.endswith(".index.json") and name != kind.index_name):
        return False
    return path.suffix in (".json", ".jinja") or name in TOKENIZER_SOURCES


def _indexed_names(folder: Path, kind: WeightFormat) -> set[str]:
    index = folder / kind.index_name
    suffix = PurePosixPath(kind.single_name).suffix
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if names and all(PurePosixPath(name).suffix == suffix for name in names):
            return names
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DownloadError(f"{index} can't be read: {error!r}") from error
    raise DownloadError(f"{index} names no {suffix} files")
