"""When one form is called nearer, and what the noise floor makes doubtful."""

from __future__ import annotations

import numpy as np
import pytest

from localq.measure.quality import compare_qualities, noise_warnings
from localq.measure.reports import QualityComparison
from tests.measure.report_examples import form_quality


def windows(mean: float, spread: float, seed: int, count: int = 12) -> np.ndarray:
    """Means of windows; those of one seed vary in the same way, as forms do on the same text."""
    noise = np.random.default_rng(seed).standard_normal(count)
    return mean + spread * (noise - noise.mean())


def comparisons(forms: dict[str, np.ndarray], noise: float | None = None) -> tuple[QualityComparison, ...]:
    """Of forms by their names and windows."""
    results = [form_quality(name, float(values.mean())) for name, values in forms.items()]
    return compare_qualities(results, forms, None if noise is None else form_quality("model:mlx-f32", noise))


def test_a_form_is_nearer_where_every_window_agrees() -> None:
    # The windows differ much more than the forms do: so it must be pairs that are compared.
    one, other = windows(0.03, 0.02, seed=1), windows(0.034, 0.02, seed=1) + windows(0, 0.001, seed=2)
    (found,) = comparisons({"model:gguf-a": one, "model:gguf-b": other})
    assert (found.nearer, found.farther, found.differs) == ("model:gguf-a", "model:gguf-b", True)
    assert found.difference.estimate == pytest.approx(0.004)
    assert 0 < found.difference.low < 0.004 < found.difference.high


def test_none_is_nearer_where_windows_disagree() -> None:
    (found,) = comparisons({"model:gguf-a": windows(0.034, 0.02, seed=2), "model:gguf-b": windows(0.03, 0.02, seed=1)})
    assert (found.nearer, found.farther, found.differs) == ("model:gguf-b", "model:gguf-a", False)
    assert found.difference.low < 0


def test_a_difference_across_engines_must_be_larger_than_the_noise_floor() -> None:
    one, other = windows(0.030, 0.02, seed=1), windows(0.034, 0.02, seed=1)
    for noise, differs in ((1e-6, True), (0.005, False)):
        (found,) = comparisons({"model:gguf-a": one, "model:mlx-b": other}, noise)
        assert found.differs == differs
        # Within one engine it does not matter.
        (found,) = comparisons({"model:gguf-a": one, "model:gguf-b": other}, noise)
        assert found.differs


def test_every_two_forms_are_compared_and_a_single_window_compares_none() -> None:
    forms = {f"model:gguf-{number}": windows(number / 100, 0.001, seed=1) for number in (1, 2, 3)}
    assert len(comparisons(forms)) == 3
    assert comparisons({name: values[:1] for name, values in forms.items()}) == ()


def test_a_warning_says_that_the_engines_disagree() -> None:
    results = [form_quality("model:gguf-q4_0", 0.02), form_quality("model:mlx-4bit", 0.03)]
    (warning,) = noise_warnings(results, form_quality("model:mlx-bf16", 0.005))
    assert "engines disagree" in warning and "model:mlx-bf16" in warning and "0.005" in warning


def test_a_warning_names_a_form_that_is_hardly_above_the_noise() -> None:
    names = {"model:gguf-q8_0": 0.001, "model:mlx-8bit": 0.001, "model:mlx-4bit": 0.03}
    results = [form_quality(name, mean) for name, mean in names.items()]
    (warning,) = noise_warnings(results, form_quality("model:mlx-bf16", 0.0003))
    assert "30% of the mean KL divergence of model:mlx-8bit" in warning
    assert noise_warnings(results, form_quality("model:mlx-bf16", 0.00003)) == []
    assert noise_warnings(results, None) == []
    floor = form_quality("model:mlx-bf16", 0.0003)
    assert noise_warnings([floor], floor) == []  # the noise floor itself is not doubtful
