"""The importance of columns: how large the numbers are that each column of a weight is multiplied by.

The sums are those of llama-imatrix (`collect_imatrix` in llama.cpp's tools/imatrix/imatrix.cpp), added in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from localq.calibration.importance import ImportanceMatrix
from localq.engines.llamacpp_observer import DENSE, EXPERTS, ObservedEngine, Product
from localq.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class ColumnSums:
    """Sums of squared inputs by column, over all windows that were computed. An `Observer`."""

    def __init__(self) -> None:
        self.sums: dict[str, NDArray[np.float64]] = {}
        """By GGUF name: shape (experts, columns)."""
        self.counts: dict[str, NDArray[np.int64]] = {}
        """Inputs that each expert got: shape (experts,)."""
        self._newest = self._last = ""

    def compute(self, engine: ObservedEngine, tokens: Sequence[int]) -> None:
        """Add a window. Raises EngineError for inputs that are not finite."""
        with engine.observed(self):
            # Logits of all tokens are asked for: llama.cpp leaves the others out of the last layer.
            next(engine.logits_in_chunks(tokens))
        self._last = self._newest

    def wants(self, operation: str, weight: str) -> bool:
        """See `Observer`: the layers' weights, as in llama-imatrix."""
        return operation in (DENSE, EXPERTS) and weight.startswith("blk.")

    def see(self, product: Product) -> bool:
        """See `Observer`. After the last layer the output layer need not be computed."""
        import numpy as np

        inputs, name = product.inputs(), product.weight
        if name not in self.sums:
            self.sums[name] = np.zeros((product.expert_count, inputs.shape[-1]))
            self.counts[name] = np.zeros(product.expert_count, np.int64)
        if product.operation == DENSE:
            self._add(name, 0, inputs.reshape(-1, inputs.shape[-1]))
        else:
            experts = product.experts()
            for expert in np.unique(experts):
                tokens, choices = np.nonzero(experts == expert)
                self._add(name, expert, inputs[tokens, choices % inputs.shape[1]])
        self._newest = name
        return name != self._last

    def _add(self, name: str, expert: int, inputs: NDArray[np.float32]) -> None:
        import numpy as np

        sums = np.square(inputs).sum(axis=0, dtype=np.float64)
        if not np.isfinite(sums).all():
            raise EngineError(
                f"the input of {name} holds numbers that are not finite", "the weights are damaged: download them again"
            )
        self.sums[name][expert] += sums
        self.counts[name][expert] += len(inputs)

    def importance(self, datasets: Sequence[str], chunk_tokens: int) -> ImportanceMatrix:
        """The importance matrix of what was computed so far."""
        import numpy as np

        sums = {name: values.astype(np.float32) for name, values in self.sums.items()}
        counts = {name: values.astype(np.float32) for name, values in self.counts.items()}
        tokens = [int(values.sum()) for values in self.counts.values() if len(values) == 1]
        chunks = max(tokens, default=0) // chunk_tokens
        return ImportanceMatrix(sums, counts, tuple(datasets), chunks, chunk_tokens)
