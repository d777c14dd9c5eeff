"""The weights of a checkpoint folder: which files hold them, and its tensors by name, read lazily in ranges of rows.

The files' names are those that transformers writes: one file, or numbered shards with an index that says which tensor
is in which. Other files, such as training_args.bin, optimizer.bin or rng_state.pth, are not read. Knows nothing of
families or of what the tensors are for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from localq.checkpoint.safetensors_header import read_header
from localq.checkpoint.tensors import WeightFiles, WeightTensor, first_not_finite, to_float32
from localq.checkpoint.torch_archive import read_torch_archive
from localq.errors import CheckpointError, shown
from localq.json_files import read_json
from localq.regular_files import is_there

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Weights:
    """Tensors of one checkpoint. A context manager; thread-safe for reading."""

    def __init__(self, tensors: Mapping[str, WeightTensor]) -> None:
        self._tensors = tensors
        self._files = WeightFiles()

    @property
    def tensors(self) -> Mapping[str, WeightTensor]:
        """Every tensor by name."""
        return self._tensors

    def files(self) -> list[Path]:
        """The weight files, each once."""
        return sorted({file for tensor in self._tensors.values() for file in tensor.files})

    def __enter__(self) -> Weights:
        """Open the files for `read_rows`. Raises CheckpointError when one is gone."""
        self._files.open(self.files())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.close()

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of a tensor as `WeightTensor.read_rows` gives them, every value of them finite.

        Raises CheckpointError for a NaN or an infinity, and for a file that ends early.
        """
        tensor = self._tensors[name]
        rows = tensor.read_rows(self._files, start, stop)
        position = first_not_finite(rows)
        if position is not None:
            value = to_float32(rows.reshape(-1)[position : position + 1])[0]
            row = start + position // math.prod(rows.shape[1:])
            raise CheckpointError(
                f"tensor {name} holds {value} in row {row:,}",
                "the weights are damaged, or a merge or a fine-tune failed: no conversion would give right answers",
            )
        return rows


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """A format of weight files and the names that its files have."""

    single_name: str
    index_name: str
    """Says under `weight_map` in which file every tensor is; there when the weights are in several files."""
    pattern: str
    """Of the single file and of shards, as `Path.glob` takes it."""
    read: Callable[[Path], Sequence[WeightTensor]]
    """Every tensor of a file. Raises CheckpointError."""

    def is_in(self, folder: Path) -> bool:
        return is_there(folder / self.index_name) or any(folder.glob(self.pattern))


SAFETENSORS = WeightFormat("model.safetensors", "model.safetensors.index.json", "model*.safetensors", read_header)
TORCH = WeightFormat("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model*.bin", read_torch_archive)
INDEX_NAME, SINGLE_NAME = SAFETENSORS.index_name, SAFETENSORS.single_name
"""What localq itself writes."""


def find_weights(folder: Path) -> Weights:
    """The weights of a checkpoint folder: safetensors where both formats are there. Reads headers only.

    From the index's shards, else the single file, else shards without an index. Raises CheckpointError for a folder
    without weights, for files that are missing, damaged or not of this folder, and for tensors that are in two files
    or in another one than the index says.
    """
    kind = next((kind for kind in (SAFETENSORS, TORCH) if kind.is_in(folder)), None)
    if kind is None:
        raise _no_weights(folder)
    index = folder / kind.index_name
    weight_map = read_index(index) if is_there(index) else {}
    files = _indexed_files(index, weight_map) if weight_map else _files_without_index(folder, kind)
    homes: dict[str, Path] = {}
    tensors: dict[str, WeightTensor] = {}
    # Whatever the files hold, named by the index or not: nothing is dropped silently.
    for file in files:
        for tensor in kind.read(file):
            if tensor.name in homes:
                raise CheckpointError(
                    f"tensor {tensor.name} is in {homes[tensor.name].name} and in {file.name}",
                    "one of them is of another checkpoint: download them into an empty folder",
                )
            homes[tensor.name], tensors[tensor.name] = file, tensor
    for name, file_name in weight_map.items():
        if name not in homes or homes[name].name != file_name:
            raise CheckpointError(
                f"{index.name} says that {file_name} holds {shown(name)}, and it does not", "download both again"
            )
    return Weights(tensors)


def read_index(index: Path) -> dict[str, str]:
    """From tensor to file name, as an index says it; perhaps incomplete. Raises CheckpointError for no such file."""
    try:
        weight_map: dict[str, str] = read_json(index)["weight_map"]
        if weight_map and all(isinstance(name, str) for name in weight_map.values()):
            return weight_map
        cause = None
    except (KeyError, TypeError, AttributeError) as error:
        cause = error
    raise CheckpointError(
        f"{index} can't be read as an index of weight files", "download the file again: `localq pull --verify REPO`"
    ) from cause


def _indexed_files(index: Path, weight_map: Mapping[str, str]) -> list[Path]:
    folder, names = index.parent, sorted(set(weight_map.values()))
    for name in names:
        if name in ("", ".", "..") or not name.isprintable() or Path(name).name != name or "\\" in name or "\0" in name:
            raise CheckpointError(
                f"{index.name} names '{shown(name)}', which is not a file of this folder",
                "don't trust this checkpoint: an index names files beside it only",
            )
    missing = sorted(set(names) - {path.name for path in folder.iterdir()})
    if missing:
        more = " ..." if len(missing) > 3 else ""
        raise CheckpointError(
            f"{folder} does not have {len(missing)} of {len(names)} shards: {', '.join(map(shown, missing[:3]))}{more}",
            "download them; `localq pull org/name` continues a download that stopped",
        )
    return [folder / name for name in names]


def _files_without_index(folder: Path, kind: WeightFormat) -> list[Path]:
    """The single file, or shards, which number themselves: model-00001-of-00003.safetensors."""
    single = folder / kind.single_name
    files = [single] if is_there(single) else sorted(folder.glob(kind.pattern))
    for file in files:
        _, of, count = file.stem.rpartition("-of-")
        if of and count.isdecimal() and int(count) != len(files):
            raise CheckpointError(
                f"{folder} has {len(files)} of {int(count)} shards, and no {kind.index_name}",
                "download the rest; `localq pull org/name` continues a download that stopped",
            )
    return files


_INSTEAD = {
    "consolidated*": (
        "its weights are in the format of the model's makers (consolidated.*)",
        "take the same model in Hugging Face format: often another repository whose name ends with -hf",
    ),
    "adapter_model.*": (
        "it is an adapter (adapter_model.*), which changes another model",
        "merge it into its base model first, and convert that: `merge_and_unload()` of the library peft",
    ),
    "*.gguf": ("it has a .gguf file", "name that file instead"),
}
"""What a folder may have instead of weights: what it is, and what helps."""


def _no_weights(folder: Path) -> CheckpointError:
    for pattern, (found, advice) in _INSTEAD.items():
        if any(folder.glob(pattern)):
            return CheckpointError(f"{folder} has no {SAFETENSORS.single_name}: {found}", advice)
    return CheckpointError(
        f"{folder} has no weights: neither {SAFETENSORS.single_name} nor {TORCH.single_name}",
        "give a folder with one of them, or run `localq pull org/name`",
    )
