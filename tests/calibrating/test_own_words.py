"""The text that a small model writes itself, as part of its calibration."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from localq.calibrating import own_words
from localq.calibrating.calibrate import CalibrationSettings, calibrate_model
from localq.calibrating.own_words import write_text
from localq.checkpoint.folder import Checkpoint
from localq.store.manifest import Artifact
from localq.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("few_sampled_rows")
Measured = Callable[[str], tuple[Checkpoint, Artifact]]
NAME = "written by the model"


def test_a_small_model_writes_the_same_in_every_run_whatever_the_threads(measured: Measured) -> None:
    checkpoint, artifact = measured("llama-3.2")
    tokenizer = load_tokenizer(checkpoint.folder)
    first, again = (write_text(artifact.path, tokenizer, 8 * 10**8, threads) for threads in (1, 2))
    assert first is not None and first == again
    assert first.name == NAME
    assert first.sha256 == hashlib.sha256(first.content.encode()).hexdigest()
    sequences = first.content.split("\n")
    assert len(set(sequences)) >= 16  # each sequence has a seed of its own; some have line ends


def test_a_larger_model_writes_less_and_one_of_billions_nothing(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, artifact = measured("llama-3.2")
    monkeypatch.setattr(own_words, "_SEQUENCES", 1)
    tokenizer = load_tokenizer(checkpoint.folder)
    lengths = []
    for parameters in (10**7, 10**8, 4 * 10**8, 8 * 10**8):
        text = write_text(artifact.path, tokenizer, parameters, None)
        assert text is not None
        lengths.append(len(text.content))
    assert lengths[0] == lengths[1] > 3 * lengths[2] > 4 * lengths[3] > 0
    assert write_text(Path("never opened.gguf"), tokenizer, 8 * 10**8 + 10**7, None) is None
    assert write_text(Path("never opened.gguf"), tokenizer, 7 * 10**9, None) is None


def test_it_is_part_of_the_calibration_of_a_small_model(
    measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = measured("llama-3.2")
    monkeypatch.setattr(own_words, "_MOST_TOKENS", 192)

    def tokens_by_text(tokens: int) -> dict[str, int]:
        settings = CalibrationSettings(tokens=tokens, sensitivity_tokens=128, force=True)
        texts = calibrate_model(str(checkpoint.folder), settings, tmp_path).calibration.texts
        return {text.name: text.tokens for text in texts}

    of_small = tokens_by_text(8192)
    assert of_small[NAME] > 0
    monkeypatch.setattr(own_words, "_LARGE_PARAMETERS", 1)
    assert tokens_by_text(512).keys() == of_small.keys() - {NAME}
