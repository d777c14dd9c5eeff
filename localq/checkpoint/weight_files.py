"""Which files of a checkpoint folder hold its weights. Knows their names, and of the contents only the index.

The names are those that transformers writes: one file, or numbered shards with an index that tells which tensor is in
which. Other files, such as training_args.bin, optimizer.bin or rng_state.pth, are not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localq.checkpoint.safetensors_header import read_header
from localq.checkpoint.tensors import WeightTensor
from localq.checkpoint.torch_archive import read_torch_archive
from localq.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """A format of weight files and the names that its files have."""

    single_name: str
    index_name: str
    """Names the weight file of every tensor, under `weight_map`; there when the weights are in several files."""
    pattern: str
    """Of the single file and of shards, as `Path.glob` takes it."""
    read: Callable[[Path], Sequence[WeightTensor]]
    """Every tensor of a file. Raises CheckpointError."""

    def is_in(self, folder: Path) -> bool:
        return (folder / self.index_name).exists() or any(folder.glob(self.pattern))


SAFETENSORS = WeightFormat("model.safetensors", "model.safetensors.index.json", "model*.safetensors", read_header)
TORCH = WeightFormat("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*.bin", read_torch_archive)


@dataclass(frozen=True, slots=True)
class WeightFileSet:
    """The weight files of a folder, all of which are there."""

    format: WeightFormat
    files: list[Path]
    weight_map: Mapping[str, str]
    """From tensor to file name, as the index says it; empty without an index, and perhaps incomplete."""


def find_weight_files(folder: Path) -> WeightFileSet:
    """The index's shards, else the single file, else shards without an index; safetensors where both are there.

    Raises CheckpointError for a folder without weights, an index that names other files, and missing shards.
    """
    kind = next((kind for kind in (SAFETENSORS, TORCH) if kind.is_in(folder)), None)
    if kind is None:
        raise _no_weights(folder)
    if (folder / kind.index_name).exists():
        weight_map = _read_index(folder / kind.index_name)
        return WeightFileSet(kind, _indexed_files(folder, weight_map), weight_map)
    single = folder / kind.single_name
    files = [single] if single.exists() else sorted(folder.glob(kind.pattern))
    _check_complete_numbering(files, kind)
    return WeightFileSet(kind, files, {})


def _read_index(index: Path) -> dict[str, str]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} can't be read as an index of shards", "download the file again") from error
    for name in names:
        if not _is_file_name(name):
            raise CheckpointError(
                f"{index.name} names {name!r}, which is not a file of this folder",
                "don't trust this checkpoint: an index names files beside it only",
            )
    return weight_map


def _is_file_name(name: object) -> bool:
    if not isinstance(name, str) or name in ("", ".", ".."):
        return False
    return Path(name).name == name and "\\" not in name and "\0" not in name


def _indexed_files(folder: Path, weight_map: Mapping[str, str]) -> list[Path]:
    names = sorted(set(weight_map.values()))
    missing = sorted(set(names) - {path.name for path in folder.iterdir()})
    if missing:
        more = " ..." if len(missing) > 3 else ""
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} shards: {', '.join(missing[:3])}{more}",
            "download them; `localq pull org/name` takes up where a download stopped",
        )
    return [folder / name for name in names]


def _check_complete_numbering(files: list[Path], kind: WeightFormat) -> None:
    """Shards without an index number themselves: model-00001-of-00003.safetensors."""
    for file in files:
        _, of, count = file.stem.rpartition("-of-")
        if of and count.isdecimal() and int(count) != len(files):
            raise CheckpointError(
                f"{file.parent} has {len(files)} of {int(count)} shards, and no {kind.index_name}",
                "download the rest; `localq pull org/name` takes up where a download stopped",
            )


_INSTEAD = {
    "consolidated*": (
        "its weights are in the format of the model's makers (consolidated.*)",
        "take the same model in Hugging Face format: often a repository of its own whose name ends with -hf",
    ),
    "adapter_model.*": (
        "it is an adapter (adapter_model.*), which changes another model",
        "merge it into its base model first, and convert that: `merge_and_unload()` of the library peft",
    ),
    "*.gguf": ("it has a .gguf file", "name that file instead"),
}
"""What a folder may hold in place of weights: what it is, and what helps."""


def _no_weights(folder: Path) -> CheckpointError:
    for pattern, (found, advice) in _INSTEAD.items():
        if any(folder.glob(pattern)):
            return CheckpointError(f"{folder} has no {SAFETENSORS.single_name}: {found}", advice)
    return CheckpointError(
        f"{folder} has no weights: neither {SAFETENSORS.single_name} nor {TORCH.single_name}",
        "give a folder with one of them, or `localq pull org/name`",
    )
