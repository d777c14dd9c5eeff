"""Both artifacts of random checkpoints compute what transformers computes, up to the original context and beyond."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from localq.model import load
from tests.contracts.replies import all_logits
from tests.families.make_reference_logits import CONTEXT_LENGTHS, FILE, NAMES, positions, token_ids
from tests.tiny_checkpoints import write_checkpoint

pytest.importorskip("mlx_lm")

REFERENCE: dict[str, np.ndarray] = dict(np.load(FILE))
LARGEST_KL = {("phi-2", "gguf"): 1e-7}
"""ggml takes GELU from a table in half precision."""


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def mean_kl(reference: np.ndarray, other: np.ndarray) -> float:
    left, right = log_probabilities(reference), log_probabilities(other)
    return float((np.exp(left) * (left - right)).sum(axis=-1).mean())


def computed(folder: Path, form: str, context_length: int, models: Path) -> np.ndarray:
    with load(f"{folder}:{form}-f32", context_length=context_length, models_dir=models) as model:
        return all_logits(model.engine, token_ids(context_length))[positions(context_length)]


@pytest.mark.parametrize("form", ["mlx", "gguf"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers(name: str, form: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / name, name)
    for length in CONTEXT_LENGTHS:
        logits = computed(folder, form, length, tmp_path / "models")
        reference = REFERENCE.get(f"{name}-{length}-{form}", REFERENCE[f"{name}-{length}"])
        assert mean_kl(reference, logits) < LARGEST_KL.get((name, form), 1e-8)


def test_the_caveat_on_phimoe_is_true_llama_cpp_predicts_other_tokens() -> None:
    for length in CONTEXT_LENGTHS:
        as_trained, as_run = REFERENCE[f"phi-3.5-moe-{length}"], REFERENCE[f"phi-3.5-moe-{length}-gguf"]
        assert mean_kl(as_trained, as_run) > 0.01
