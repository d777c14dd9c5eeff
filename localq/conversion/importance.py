"""The importance matrix of a conversion: which file it is, and whether it fits the model, by llama-quantize's rules."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localq.calibration.importance import ImportanceMatrix, importance_digest, read_importance
from localq.errors import CalibrationError
from localq.recipes import GgufRecipe
from localq.store.manifest import ImportanceRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from localq.conversion.plan_gguf import GgufTensor

_EMBEDDINGS, _OUTPUT = "token_embd.weight", "output.weight"
_TYPES_THAT_NEED_ONE = {"iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"}
_UNQUANTIZED = {"f32", "f16", "bf16"}
_UINT32, _STRING = 4, 8  # of `enum gguf_type`


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

    def of(self, tensor: GgufTensor) -> NDArray[np.float32] | None:
        """The weights of a tensor that `require_fit` let pass, shape (experts, columns); None where it has none."""
        weights = self.matrix.weights(tensor.name)
        if weights is None or weights.size != tensor.experts * tensor.columns:
            return None
        return weights.reshape(tensor.experts, tensor.columns)

    def require_fit(self, recipe: GgufRecipe, tensors: Iterable[GgufTensor]) -> None:
        """Raise CalibrationError where llama-quantize refuses the matrix: of another model, or without a needed entry.

        Source: `llama_model_quantize_impl` and `tensor_requires_imatrix` in llama.cpp's src/llama-quant.cpp.
        """
        for tensor in tensors:
            if tensor.type_name in _UNQUANTIZED:
                continue
            sums = self.matrix.sums.get(tensor.name)
            if sums is not None and sums.size != tensor.experts * tensor.columns and tensor.name != _EMBEDDINGS:
                raise CalibrationError(
                    f"the importance matrix {self.record.file} is of another model: {tensor.name} has {sums.size:,} "
                    f"values in it, and {tensor.experts * tensor.columns:,} columns in this model",
                    "give the matrix that was measured on this model",
                )
            if self.of(tensor) is None and _needs_weights(recipe, tensor):
                raise CalibrationError(
                    f"the importance matrix {self.record.file} has no entry for {tensor.name}, "
                    f"which {recipe.name} makes {tensor.type_name}",
                    "give the matrix that was measured on this model, or choose a format with more bits",
                )

    def metadata(self) -> list[bytes]:
        """The pairs that llama-quantize adds to a GGUF file; of the file only the name, without the folder."""
        record = self.record
        texts = {"file": record.file, **({"dataset": record.datasets[0]} if record.datasets else {})}
        numbers = {"entries_count": record.entries}
        numbers |= {"chunks_count": record.chunk_count} if record.chunk_count > 0 else {}
        pairs = [_key(key) + struct.pack("<I", _STRING) + _text(text) for key, text in texts.items()]
        return pairs + [_key(key) + struct.pack("<II", _UINT32, number) for key, number in numbers.items()]


def read_given(file: Path) -> Importance:
    """The matrix of a file that was given. Raises CalibrationError for one that can't be read."""
    return _importance(file, read_importance(file), is_calibration=False)


def _importance(file: Path, matrix: ImportanceMatrix, *, is_calibration: bool) -> Importance:
    digest = importance_digest(file)
    record = ImportanceRecord(file.name, digest, is_calibration, matrix.datasets, len(matrix.sums), matrix.chunk_count)
    return Importance(matrix, record)


def _needs_weights(recipe: GgufRecipe, tensor: GgufTensor) -> bool:
    if tensor.name in (_EMBEDDINGS, _OUTPUT):
        return False
    return tensor.type_name in _TYPES_THAT_NEED_ONE or (tensor.type_name == "q2_K" and recipe.file_type == "Q2_K_S")


def _key(name: str) -> bytes:
    return _text(f"quantize.imatrix.{name}")


def _text(text: str) -> bytes:
    data = text.encode(errors="replace")
    return struct.pack("<Q", len(data)) + data
