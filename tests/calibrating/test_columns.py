"""The importance of columns, against sums that are written down here from what llama-imatrix does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest

from localq.calibrating.columns import ColumnSums
from localq.checkpoint.folder import Checkpoint
from localq.engines.llamacpp_observer import EXPERTS, LOOKUP, ObservedEngine, Product
from localq.options import LoadOptions
from localq.store.manifest import Artifact

WINDOWS = [[number * step % 700 for number in range(48)] for step in (37, 41, 53)]
Measured = Callable[[str], tuple[Checkpoint, Artifact]]


class Sums:
    """`collect_imatrix`, value by value."""

    def __init__(self) -> None:
        self.values: dict[str, np.ndarray] = {}
        self.counts: dict[str, np.ndarray] = {}

    def wants(self, operation: str, weight: str) -> bool:
        return operation != LOOKUP and weight.startswith("blk.")

    def see(self, product: Product) -> bool:
        inputs = product.inputs()
        tokens, _, columns = inputs.shape
        experts = product.experts() if product.operation == EXPERTS else np.zeros((tokens, 1), int)
        values = self.values.setdefault(product.weight, np.zeros((product.expert_count, columns), np.float32))
        counts = self.counts.setdefault(product.weight, np.zeros(product.expert_count, int))
        for choice in range(experts.shape[1]):
            for token in range(tokens):
                values[experts[token, choice]] += inputs[token, choice % inputs.shape[1]] ** 2
                counts[experts[token, choice]] += 1
        return True


@pytest.mark.parametrize("name", ["llama-3.2", "phi-3-4k", "phi-1.5", "phi-3.5-moe"])
def test_sums_and_counts_are_those_of_llama_imatrix(measured: Measured, name: str) -> None:
    checkpoint, artifact = measured(name)
    columns, expected = ColumnSums(), Sums()
    with closing(ObservedEngine(artifact.path, LoadOptions(), 64)) as engine:
        for window in WINDOWS:
            columns.compute(engine, window)
            with engine.observed(expected):
                list(engine.logits_in_chunks(window))
    matrix = columns.importance(["a text"], 48)
    assert matrix.sums.keys() == expected.values.keys()
    in_layers = {layout.gguf_name for layout in checkpoint.layouts if len(layout.shape) > 1} - {
        "token_embd.weight",
        "output.weight",
    }
    assert matrix.sums.keys() == in_layers
    for weight, values in expected.values.items():
        assert np.allclose(matrix.sums[weight], values, rtol=1e-5)
        assert matrix.counts[weight].tolist() == expected.counts[weight].tolist()
    assert (matrix.chunk_count, matrix.chunk_tokens) == (3, 48)


def test_every_token_of_a_moe_is_counted_for_two_experts(measured: Measured) -> None:
    _, artifact = measured("phi-3.5-moe")
    columns = ColumnSums()
    with closing(ObservedEngine(artifact.path, LoadOptions(), 64)) as engine:
        columns.compute(engine, WINDOWS[0])
    assert columns.counts["blk.0.ffn_down_exps.weight"].sum() == 2 * len(WINDOWS[0])
    assert columns.counts["blk.0.attn_q.weight"].tolist() == [len(WINDOWS[0])]
