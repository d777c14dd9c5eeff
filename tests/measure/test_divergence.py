"""Figures of a comparison, against the formulas written out in float64, as llama-perplexity has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localq.errors import EngineError
from localq.measure.divergence import compare_rows, divergence_of, negative_log_likelihoods, perplexity_of
from localq.measure.reports import Divergence
from tests.contracts.replies import log_softmax

COUNT = 400
SHAPES = ("flat", "normal", "peaked", "two peaks", "heavy tails", "power law", "one far below", "all but equal")
Case = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module", params=[300, 2500])
def case(request: pytest.FixtureRequest) -> Case:
    """The baseline's logits, a form's, and the right tokens."""
    random = np.random.default_rng(7)
    baseline = (3 * random.standard_normal((COUNT, request.param))).astype(np.float32)
    form = (baseline + 0.3 * random.standard_normal(baseline.shape)).astype(np.float32)
    likely = baseline.argsort(axis=1)[np.arange(COUNT), -random.integers(1, 30, COUNT)]
    return baseline, form, likely


def divergence(baseline: np.ndarray, form: np.ndarray, right: np.ndarray) -> Divergence:
    return divergence_of(compare_rows(baseline, form, right), negative_log_likelihoods(baseline, right))


def llama_perplexity_statistics(baseline: np.ndarray, form: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """`kl_divergence` of perplexity.cpp: sums and sums of squares, and what it prints of them."""
    log_p, log_q = (log_softmax(rows.astype(np.float64)) for rows in (baseline, form))
    rows = np.arange(len(right))
    nll, nll_base = -log_q[rows, right], -log_p[rows, right]
    kld = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    p_diff = np.exp(-nll) - np.exp(-nll_base)
    count = len(right)

    def mean_and_uncertainty(values: np.ndarray) -> tuple[float, float]:
        mean = values.sum() / count
        return mean, math.sqrt((np.square(values).sum() / count - mean**2) / (count - 1))

    def percentile(fraction: float) -> float:
        ordered = np.sort(kld)
        place = fraction * (count - 1)
        index = int(place)
        part = place - index
        return (1 - part) * ordered[index] + part * ordered[min(index + 1, count - 1)]

    log_ppl, log_ppl_base = mean_and_uncertainty(nll), mean_and_uncertainty(nll_base)
    covariance = ((nll * nll_base).sum() / count - log_ppl[0] * log_ppl_base[0]) / (count - 1)
    same_top = float((log_p.argmax(axis=1) == log_q.argmax(axis=1)).mean())
    mse = mean_and_uncertainty(p_diff**2)
    return {
        "positions": count,
        "mean_kl_divergence": mean_and_uncertainty(kld)[0],
        "kl_divergence_standard_error": mean_and_uncertainty(kld)[1],
        "median_kl_divergence": percentile(0.5),
        "p90_kl_divergence": percentile(0.9),
        "p95_kl_divergence": percentile(0.95),
        "p99_kl_divergence": percentile(0.99),
        "p99_9_kl_divergence": percentile(0.999),
        "max_kl_divergence": kld.max(),
        "same_top_fraction": same_top,
        "same_top_standard_error": math.sqrt(same_top * (1 - same_top) / (count - 1)),
        "perplexity": math.exp(log_ppl[0]),
        "perplexity_standard_error": math.exp(log_ppl[0]) * log_ppl[1],
        "reference_perplexity": math.exp(log_ppl_base[0]),
        "log_perplexity_ratio": log_ppl[0] - log_ppl_base[0],
        "log_perplexity_ratio_standard_error": math.sqrt(log_ppl[1] ** 2 + log_ppl_base[1] ** 2 - 2 * covariance),
        "mean_probability_change": p_diff.mean(),
        "mean_probability_change_standard_error": mean_and_uncertainty(p_diff)[1],
        "rms_probability_change": math.sqrt(mse[0]),
        "rms_probability_change_standard_error": 0.5 / math.sqrt(mse[0]) * mse[1],
        "max_probability_change": np.abs(p_diff).max(),
    }


def test_figures_are_those_of_llama_perplexity(case: Case) -> None:
    found = divergence(*case).model_dump()
    expected = llama_perplexity_statistics(*case)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_a_model_is_no_distance_from_itself(case: Case) -> None:
    baseline, _, right = case
    found = divergence(baseline, baseline, right)
    assert (found.mean_kl_divergence, found.max_kl_divergence) == (0, 0)
    assert (found.same_top_fraction, found.same_top_standard_error) == (1, 0)
    assert found.perplexity == found.reference_perplexity
    assert (found.rms_probability_change, found.rms_probability_change_standard_error) == (0, None)


def test_one_position_has_values_and_no_spread(case: Case) -> None:
    baseline, form, right = (part[:1] for part in case)
    found = divergence(baseline, form, right).model_dump()
    assert found["positions"] == 1
    for name, value in found.items():
        assert (value is None) == name.endswith("standard_error"), name
    assert perplexity_of(negative_log_likelihoods(baseline, right))[1] is None


def rows_of(shape: str, vocabulary_size: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    noise = random.standard_normal((3, vocabulary_size))
    places = np.argsort(random.random((3, vocabulary_size)), axis=1)
    made = {
        "flat": 0.01 * noise,
        "normal": 3 * noise,
        "peaked": noise + 30 * (places == 5),
        "two peaks": noise + 20 * (places < 2),
        "heavy tails": random.standard_t(2, noise.shape),
        "power law": -np.log(1 + places),
        "one far below": noise - 90 * (places == 7),
        "all but equal": 1e-6 * noise,
    }[shape]
    return (made + 50 * random.standard_normal()).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    vocabulary_size=st.sampled_from([2, 700, 3000, 20_000]),
    noise=st.sampled_from([0.0, 1e-6, 1e-3, 0.05, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_divergence_is_the_exact_one_except_for_the_rounding_of_float64(
    shape: str, vocabulary_size: int, noise: float, seed: int
) -> None:
    """The bound follows from the roundings, each of which is off by at most u = 2^-53 of its result.

    Let n be the size of the vocabulary and k = 32 + 2 log2 n. A pairwise sum of n positive numbers, as numpy computes
    it, is off by (16 + log2 n) u of itself; an exponential or a logarithm by a few u. So a log-probability l = v - L,
    where |v| is at most |l| and |L| at most ln n + 1, is off by less than (3 |l| + k) u; a probability by as much, of
    itself; and a divergence, the sum of p (l - m), by less than the sum of p (1 + |l - m|) (3 |l| + 3 |m| + 3 k) u.
    Twice that, because where long double has no more digits the expected value is off as much.
    """
    logits = rows_of(shape, vocabulary_size, seed)
    other = (logits + noise * np.random.default_rng(seed + 1).standard_normal(logits.shape)).astype(np.float32)
    found = compare_rows(logits, other, np.zeros(3, dtype=np.intp))["kl_divergence"]
    log_p, log_q = (log_softmax(rows.astype(np.longdouble)) for rows in (logits, other))
    exact = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    k = 32 + 2 * math.log2(vocabulary_size)
    parts = np.exp(log_p) * (1 + abs(log_p - log_q)) * (3 * abs(log_p) + 3 * abs(log_q) + 3 * k)
    limit = 2 * 2.0**-53 * parts.sum(axis=1)
    assert (abs(found - exact) <= limit).all()
    assert limit.max() < 1e-12  # nats: far below the noise floor of the engines


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(value: float) -> None:
    logits = rows_of("normal", 700, seed=5)
    wrong = logits.copy()
    wrong[1, 7] = value
    right = np.zeros(3, dtype=np.intp)
    for pair in ((logits, wrong), (wrong, logits), (wrong, wrong)):
        with pytest.raises(EngineError, match="not all finite"), np.errstate(invalid="ignore"):
            compare_rows(*pair, right)
    with pytest.raises(EngineError, match="not all finite"), np.errstate(invalid="ignore"):
        negative_log_likelihoods(wrong, right)
