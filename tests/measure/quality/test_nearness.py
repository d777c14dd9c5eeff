"""When one form is called nearer, and when the engines' own difference forbids it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from localq.measure.forms import Form
from localq.measure.quality.divergence import Divergence
from localq.measure.quality.nearness import engine_warnings, nearness_of, paired_interval
from localq.measure.quality.results import Cost, EvalResult

COST = Cost(1.0, 1e-3, 1e-2, 10**8)
DIVERGENCE = Divergence(100, *[0.1] * (len(fields(Divergence)) - 1))


def result(recipe: str, mean: float) -> EvalResult:
    form = Form("model", recipe, Path(recipe), 1000, 4.5)
    return EvalResult(form, replace(DIVERGENCE, mean_kl_divergence=mean), COST, 900)


def windows(mean: float, spread: float, seed: int, count: int = 12) -> np.ndarray:
    """Means of windows; those of one seed vary alike, as forms do on the same text."""
    noise = np.random.default_rng(seed).standard_normal(count)
    return mean + spread * (noise - noise.mean())


def compared(one: np.ndarray, other: np.ndarray, recipes: tuple[str, str] = ("gguf-a", "gguf-b")) -> list[EvalResult]:
    return [result(recipe, float(values.mean())) for recipe, values in zip(recipes, (one, other), strict=True)]


def test_a_form_is_nearer_where_every_window_agrees() -> None:
    # The windows differ much more than the forms do: it is by pairs that they are compared.
    one, other = windows(0.03, 0.02, seed=1), windows(0.034, 0.02, seed=1) + windows(0, 0.001, seed=2)
    results = compared(one, other)
    (found,) = nearness_of(results, {results[0].form: one, results[1].form: other}, None)
    assert (found.nearer, found.farther, found.differs) == ("model:gguf-a", "model:gguf-b", True)
    assert found.difference.estimate == pytest.approx(0.004)
    assert 0 < found.difference.low < 0.004 < found.difference.high


def test_none_is_nearer_where_windows_disagree() -> None:
    one, other = windows(0.03, 0.02, seed=1), windows(0.034, 0.02, seed=2)
    results = compared(other, one)
    (found,) = nearness_of(results, {results[0].form: other, results[1].form: one}, None)
    assert (found.nearer, found.farther, found.differs) == ("model:gguf-b", "model:gguf-a", False)
    assert found.difference.low < 0


def test_a_difference_across_engines_must_be_larger_than_the_noise_floor() -> None:
    one, other = windows(0.030, 0.02, seed=1), windows(0.034, 0.02, seed=1)
    for noise, differs in ((1e-6, True), (0.005, False)):
        floor = result("mlx-f32", noise)
        results = compared(one, other, ("gguf-a", "mlx-b"))
        (found,) = nearness_of(results, {results[0].form: one, results[1].form: other}, floor)
        assert found.differs == differs
        # Within an engine it has no say.
        results = compared(one, other)
        (found,) = nearness_of(results, {results[0].form: one, results[1].form: other}, floor)
        assert found.differs


def test_every_two_forms_are_compared_and_a_single_window_compares_none() -> None:
    values = [windows(mean, 0.001, seed=1) for mean in (0.01, 0.02, 0.03)]
    results = [result(f"gguf-{name}", 0.01) for name in "abc"]
    found = nearness_of(results, {item.form: each for item, each in zip(results, values, strict=True)}, None)
    assert len(found) == 3
    assert nearness_of(results, {item.form: each[:1] for item, each in zip(results, values, strict=True)}, None) == ()


def test_the_interval_holds_the_mean_in_95_of_100_cases() -> None:
    random = np.random.default_rng(3)
    for count in (2, 4, 12, 60):
        intervals = [paired_interval(random.standard_normal(count) + 1) for _ in range(4000)]
        held = np.mean([interval.low <= 1 <= interval.high for interval in intervals])
        assert 0.94 < held < 0.96, count


def test_engines_that_disagree_are_told_of() -> None:
    results = [result("gguf-q4_0", 0.02), result("mlx-4bit", 0.03)]
    (warning,) = engine_warnings(results, result("mlx-bf16", 0.005))
    assert "engines disagree" in warning and "model:mlx-bf16" in warning and "0.005" in warning


def test_a_form_that_is_hardly_above_the_noise_is_told_of() -> None:
    results = [result("gguf-q8_0", 0.001), result("mlx-8bit", 0.001), result("mlx-4bit", 0.03)]
    (warning,) = engine_warnings(results, result("mlx-bf16", 0.0003))
    assert "model:mlx-8bit, 30%" in warning
    assert engine_warnings(results, result("mlx-bf16", 0.00003)) == []
    assert engine_warnings(results, None) == []


def test_the_noise_floor_itself_is_not_doubtful() -> None:
    floor = result("mlx-bf16", 0.0003)
    assert engine_warnings([floor], floor) == []
