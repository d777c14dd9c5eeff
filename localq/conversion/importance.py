"""The importance matrix of a conversion: which file it is, and whether it fits the model, by llama-quantize's rules."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localq.calibration.calibration import Calibration
from localq.calibration.importance import ImportanceMatrix, importance_digest, read_importance
from localq.conversion.gguf_pairs import STRING, UINT32, packed_text
from localq.conversion.plan_mlx import MlxPlan, MlxTensor
from localq.errors import CalibrationError
from localq.recipes import GgufRecipe, Recipe
from localq.store.manifest import ImportanceRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from localq.conversion.plan_gguf import GgufPlan

_EMBEDDINGS, _OUTPUT = "token_embd.weight", "output.weight"
_TYPES_THAT_NEED_ONE = {"iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"}
_TYPES_THAT_GGML_MAKES_WITH_ONE = {"iq2_xxs", "iq2_xs", "iq1_s"}  # it stops the process without (ggml-quants.c)
_UNQUANTIZED = {"f32", "f16", "bf16"}


@dataclass(frozen=True, slots=True)
class Importance:
    """An importance matrix, and where it comes from."""

    matrix: ImportanceMatrix
    record: ImportanceRecord

    def by_name(self) -> dict[str, NDArray[np.float32]]:
        """The weights of every entry, for llama.cpp."""
        import numpy as np

        weights = {name: self.matrix.weights(name) for name in self.matrix.sums}
        return {name: np.ascontiguousarray(found) for name, found in weights.items() if found is not None}

    def of(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """The weights of a tensor by its GGUF name, shape (experts, columns); None where it has none of its size."""
        weights = self.matrix.weights(name)
        return weights.reshape(-1, shape[-1]) if weights is not None and weights.size == _size(shape) else None

    def require_fit(self, plan: GgufPlan | MlxPlan) -> None:
        """Raise CalibrationError where llama-quantize refuses the matrix: of another model, or without a needed entry.

        Source: `llama_model_quantize_impl` and `tensor_requires_imatrix` in llama.cpp's src/llama-quant.cpp.
        """
        for name, shape, type_name in _quantized(plan):
            sums = self.matrix.sums.get(name)
            if sums is not None and sums.size != _size(shape) and name != _EMBEDDINGS:
                raise CalibrationError(
                    f"the importance matrix {self.record.file} is of another model: for {name} it has {sums.size:,} "
                    f"values, and this model {_size(shape):,} columns",
                    "give the matrix that was measured on this model",
                )
            if _needs_weights(plan.recipe, name, type_name) and self.of(name, shape) is None:
                raise CalibrationError(
                    f"the importance matrix {self.record.file} has nothing for {name}, "
                    f"which {plan.recipe.name} makes {type_name}",
                    "give the matrix that was measured on this model, or choose a format with more bits",
                )

    def metadata(self) -> list[bytes]:
        """The pairs that llama-quantize adds to a GGUF file; of the file only the name, without the folder."""
        record = self.record
        texts = {"file": record.file, **({"dataset": record.datasets[0]} if record.datasets else {})}
        numbers = {"entries_count": record.entries}
        numbers |= {"chunks_count": record.chunk_count} if record.chunk_count > 0 else {}
        pairs = [
            _key(key) + struct.pack("<I", STRING) + packed_text(text.encode(errors="replace"))
            for key, text in texts.items()
        ]
        return pairs + [_key(key) + struct.pack("<II", UINT32, number) for key, number in numbers.items()]


def read_given(file: Path) -> Importance:
    """The matrix of a file that was given. Raises CalibrationError for one that can't be read."""
    return _importance(file, read_importance(file), is_calibration=False)


def of_calibration(calibration: Calibration) -> Importance:
    """That of a model's calibration. Raises CalibrationError where it can't be read."""
    return _importance(calibration.importance_path, calibration.importance, is_calibration=True)


def _importance(file: Path, matrix: ImportanceMatrix, *, is_calibration: bool) -> Importance:
    digest = importance_digest(file)
    record = ImportanceRecord(file.name, digest, is_calibration, matrix.datasets, len(matrix.sums), matrix.chunk_count)
    return Importance(matrix, record)


def _quantized(plan: GgufPlan | MlxPlan) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """GGUF name, shape and type of the tensors that are quantized."""
    for tensor in plan.tensors:
        if isinstance(tensor, MlxTensor):
            if tensor.quantization is not None:
                yield tensor.layout.gguf_name, tensor.layout.shape, "affine"
        elif tensor.type_name not in _UNQUANTIZED:
            yield tensor.name, tensor.shape, tensor.type_name


def _size(shape: tuple[int, ...]) -> int:
    """Columns of all experts."""
    return math.prod(shape[:-2]) * shape[-1]


def _needs_weights(recipe: Recipe, name: str, type_name: str) -> bool:
    if name in (_EMBEDDINGS, _OUTPUT):
        return type_name in _TYPES_THAT_GGML_MAKES_WITH_ONE
    is_small = isinstance(recipe, GgufRecipe) and recipe.file_type == "Q2_K_S"
    return type_name in _TYPES_THAT_NEED_ONE or (type_name == "q2_K" and is_small)


def _key(name: str) -> bytes:
    return packed_text(f"quantize.imatrix.{name}")
