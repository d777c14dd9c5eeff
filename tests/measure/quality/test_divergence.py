"""Statistics of a comparison, against the formulas written out in float64, as llama-perplexity has them."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest

from localq.measure.quality.divergence import (
    compare_rows,
    divergence_of,
    joined,
    negative_log_likelihoods,
    perplexity_of,
)
from localq.measure.quality.reference_logits import blocks, pack_rows
from tests.contracts.replies import log_softmax

COUNT = 400


@pytest.fixture(scope="module", params=[300, 2500])
def case(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reference's logits, a form's, and the right tokens; a vocabulary kept exactly, and one that is not."""
    random = np.random.default_rng(7)
    reference = (3 * random.standard_normal((COUNT, request.param))).astype(np.float32)
    form = (reference + 0.3 * random.standard_normal(reference.shape)).astype(np.float32)
    likely = reference.argsort(axis=1)[np.arange(COUNT), -random.integers(1, 30, COUNT)]
    return reference, form, likely


def llama_perplexity_statistics(reference: np.ndarray, form: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """`kl_divergence` of perplexity.cpp: sums and sums of squares, and what it prints of them."""
    log_p, log_q = (log_softmax(rows.astype(np.float64)) for rows in (reference, form))
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


def changes(reference: np.ndarray, form: np.ndarray) -> np.ndarray:
    """|ln Q - ln P| of the 1,024 tokens that P is largest for, or of all."""
    log_p, log_q = (log_softmax(rows.astype(np.float64)) for rows in (reference, form))
    likeliest = reference.argsort(axis=1)[:, -1024:]
    return np.abs(np.take_along_axis(log_q - log_p, likeliest, axis=1))


def test_statistics_are_those_of_llama_perplexity(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    reference, form, right = case
    packed = pack_rows(reference)
    positions = compare_rows(packed, form, right)
    found = asdict(divergence_of(positions, negative_log_likelihoods(packed, reference, right)))
    change = changes(reference, form)
    expected = {
        **llama_perplexity_statistics(reference, form, right),
        "max_log_probability_change": change.max(),
        "mean_log_probability_change": change.mean(),
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-7), name


def test_positions_do_not_depend_on_how_rows_are_put_together(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    reference, form, right = case
    packed = pack_rows(reference)
    whole = compare_rows(packed, form, right)
    parts = [compare_rows(packed[block], form[block], right[block]) for block in (slice(0, 3), slice(3, None))]
    for name, values in asdict(joined(parts)).items():
        np.testing.assert_allclose(values, getattr(whole, name), rtol=1e-12, atol=1e-15)


def test_a_model_is_no_distance_from_itself(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    reference, _, right = case
    packed = pack_rows(reference)
    likelihoods = negative_log_likelihoods(packed, reference, right)
    found = divergence_of(compare_rows(packed, reference, right), likelihoods)
    assert abs(found.mean_kl_divergence) < 1e-8
    assert (found.same_top_fraction, found.same_top_standard_error) == (1, 0)
    assert found.perplexity == pytest.approx(found.reference_perplexity, rel=1e-9)
    assert found.max_log_probability_change < 1e-7


def test_one_position_has_values_and_no_spread(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    reference, form, right = (part[:1] for part in case)
    packed = pack_rows(reference)
    likelihoods = negative_log_likelihoods(packed, reference, right)
    found = asdict(divergence_of(compare_rows(packed, form, right), likelihoods))
    assert found["positions"] == 1
    for name, value in found.items():
        assert (value is None) == name.endswith("standard_error"), name
    assert perplexity_of(likelihoods).standard_error is None


@pytest.mark.parametrize(("rows", "vocabulary_size"), [(10, 128_256), (600, 512), (1, 5), (0, 5), (7, 10**6)])
def test_blocks_cover_all_rows_once_and_stay_small(rows: int, vocabulary_size: int) -> None:
    found = [index for block in blocks(rows, vocabulary_size) for index in range(rows)[block]]
    assert found == list(range(rows))
    for block in blocks(rows, vocabulary_size):
        assert (block.stop - block.start) * vocabulary_size <= max(1 << 18, vocabulary_size)
