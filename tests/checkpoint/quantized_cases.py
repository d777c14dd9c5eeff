"""Recorded quantized checkpoints, which `make_quantized_vectors.py` made: what is stored, and what it means."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localq.checkpoint.dequantize import dequantized
from localq.checkpoint.safetensors_header import read_header
from localq.checkpoint.tensors import StoredTensor, WeightFiles, WeightTensor
from localq.errors import CheckpointError

VECTORS = {path.stem: path for path in sorted((Path(__file__).parent / "quantized").glob("*.safetensors"))}


def settings_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    return {case: json.loads(settings) for case, settings in metadata.items()}


class Case:
    """One recorded checkpoint: as it is stored, its settings, and what its library reads."""

    def __init__(self, path: Path, name: str) -> None:
        named = {tensor.name: tensor for tensor in read_header(path)}
        prefix = f"{name}/"
        self.tensors: dict[str, Any] = {
            key.removeprefix(prefix): replace(tensor, name=key.removeprefix(prefix))
            for key, tensor in named.items()
            if key.startswith(prefix) and "/expected/" not in key
        }
        self.expected = named[f"{prefix}expected/X.weight"]
        recorded = settings_of(path)[name]
        self.settings: dict[str, Any] = recorded["quantization_config"]
        self.dtype: str = recorded["dtype"]

    def read(self) -> dict[str, WeightTensor]:
        return dequantized(self.tensors, self.settings, self.dtype)


CASES = [
    pytest.param(path, name, id=f"{method} {name}") for method, path in VECTORS.items() for name in settings_of(path)
]


def case_of(method: str, name: str) -> Case:
    return Case(VECTORS[method], name)


def stored_in(folder: Path, tensor: StoredTensor, values: np.ndarray[Any, Any]) -> StoredTensor:
    """The tensor with other values, in a separate file."""
    file = folder / f"{len(list(folder.iterdir()))}.bin"
    file.write_bytes(values.tobytes())
    return replace(tensor, file=file, offset=0, shape=values.shape)


def whole(tensor: WeightTensor) -> np.ndarray[Any, Any]:
    files = WeightFiles()
    files.open(tensor.files)
    try:
        return tensor.read_rows(files, 0, tensor.shape[0])
    finally:
        files.close()


def failure(case: Case) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        whole(case.read()["X.weight"])
    assert caught.value.hint
    return caught.value
