"""What an observer sees and changes, against the same computed with other weights and with numpy."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from localq.checkpoint.folder import Checkpoint
from localq.engines import llamacpp_observer
from localq.engines.llamacpp import open_engine
from localq.engines.llamacpp_observer import DENSE, EXPERTS, LOOKUP, ObservedEngine, Product
from localq.errors import EngineError
from localq.options import LoadOptions
from localq.store.manifest import Artifact

TOKENS = [number * 37 % 700 for number in range(40)]
Measured = Callable[[str], tuple[Checkpoint, Artifact]]


class Keeps:
    """Keeps copies of what it sees, and may raise."""

    def __init__(self, raises: BaseException | None = None) -> None:
        self.seen: dict[tuple[str, str], Any] = {}
        self.raises = raises

    def wants(self, operation: str, weight: str) -> bool:
        return weight.endswith(".weight")

    def see(self, product: Product) -> bool:
        if self.raises is not None:
            raise self.raises
        is_lookup = product.operation == LOOKUP
        self.seen[product.operation, product.weight] = (product.looked_up() if is_lookup else product.inputs()).copy()
        return True


@contextmanager
def opened(path: Path) -> Iterator[ObservedEngine]:
    engine = ObservedEngine(path, LoadOptions(), 64)
    try:
        yield engine
    finally:
        engine.close()


def logits_of(engine: Any) -> np.ndarray:
    return np.concatenate(list(engine.logits_in_chunks(TOKENS)))


@pytest.mark.parametrize(("name", "products"), [("llama-3.2", 2 * 7 + 2), ("phi-3-4k", 2 * 4 + 2), ("phi-1.5", 14)])
def test_an_observer_sees_every_weight_and_changes_nothing_by_looking(
    measured: Measured, name: str, products: int
) -> None:
    _, artifact = measured(name)
    plain = open_engine(artifact.path, LoadOptions(), 64)
    expected = logits_of(plain)
    plain.close()
    keeps = Keeps()
    with opened(artifact.path) as engine, engine.observed(keeps):
        assert np.array_equal(logits_of(engine), expected)
    matrices = {tensor.name for tensor in GGUFReader(artifact.path).tensors if len(tensor.shape) == 2}
    assert {weight for _, weight in keeps.seen} == matrices
    assert len(keeps.seen) == products
    assert keeps.seen[LOOKUP, "token_embd.weight"].tolist() == TOKENS


def test_inputs_are_what_the_weights_are_multiplied_by(measured: Measured) -> None:
    _, artifact = measured("llama-3.2")
    keeps = Keeps()
    with opened(artifact.path) as engine, engine.observed(keeps):
        logits = logits_of(engine)
    weights = {tensor.name: tensor.data for tensor in GGUFReader(artifact.path).tensors}
    hidden = weights["token_embd.weight"][TOKENS]
    normed = hidden / np.sqrt(np.square(hidden).mean(axis=1, keepdims=True) + 1e-5) * weights["blk.0.attn_norm.weight"]
    for name in ("attn_q", "attn_k", "attn_v"):
        assert np.allclose(keeps.seen[DENSE, f"blk.0.{name}.weight"][:, 0], normed, atol=1e-5)
    last = keeps.seen[DENSE, "token_embd.weight"][:, 0]
    assert np.allclose(last @ weights["token_embd.weight"].T, logits, atol=1e-4)


def test_experts_have_an_input_for_each_token_or_for_each_choice(measured: Measured) -> None:
    _, artifact = measured("phi-3.5-moe")
    keeps = Keeps()
    with opened(artifact.path) as engine, engine.observed(keeps):
        logits_of(engine)
    assert keeps.seen[EXPERTS, "blk.0.ffn_up_exps.weight"].shape == (len(TOKENS), 1, 256)
    assert keeps.seen[EXPERTS, "blk.0.ffn_down_exps.weight"].shape == (len(TOKENS), 2, 256)


def test_an_error_of_the_observer_reaches_the_caller_and_the_engine_stays_usable(measured: Measured) -> None:
    _, artifact = measured("llama-3.2")
    with opened(artifact.path) as engine:
        expected = logits_of(engine)
        with engine.observed(Keeps(raises=EngineError("stop"))), pytest.raises(EngineError, match="stop"):
            logits_of(engine)
        assert np.array_equal(logits_of(engine), expected)


def test_ctrl_c_in_a_pass_ends_it_with_keyboard_interrupt(measured: Measured) -> None:
    class Interrupts(Keeps):
        def see(self, product: Product) -> bool:
            signal.raise_signal(signal.SIGINT)
            return super().see(product)

    _, artifact = measured("llama-3.2")
    interrupts = Interrupts()
    with opened(artifact.path) as engine, engine.observed(interrupts):
        with pytest.raises(KeyboardInterrupt):
            logits_of(engine)
        assert len(interrupts.seen) == 1


def test_another_layout_of_tensors_is_refused_before_anything_is_read(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, artifact = measured("llama-3.2")
    llamacpp_observer._check_structure.cache_clear()
    monkeypatch.setattr(llamacpp_observer, "_OBJECT_BYTES", 40)
    with pytest.raises(EngineError, match="lays out its tensors differently"):
        ObservedEngine(artifact.path, LoadOptions(), 64)
    llamacpp_observer._check_structure.cache_clear()
