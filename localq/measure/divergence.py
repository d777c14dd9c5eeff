"""How far the predictions of a form are from those of the baseline, in the figures of llama-perplexity.

At each scored position both models give a probability to every token of the vocabulary: P the baseline, Q the form.
`compare_rows` computes the figures of single positions, `divergence_of` those of all positions together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from localq.errors import EngineError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from localq.measure.reports import Divergence

Figures = dict[str, "NDArray[np.float64]"]
"""Figures of single positions by name: arrays of one length. `same_top` is 1 if P and Q are largest for the same token,
else 0; for the others see `negative_log_likelihoods` and `compare_rows`."""


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """ln of the softmax of one row of logits, in float64. Raises EngineError for logits that are not finite."""
    import numpy as np

    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    if not np.isfinite(values).all():
        raise EngineError(
            "its logits are not all finite: a number became too large for the precision that it computes in",
            "use another precision, bf16 or f32 instead of f16",
        )
    return values


def negative_log_likelihoods(logits: NDArray[np.float32], right: NDArray[np.intp]) -> NDArray[np.float64]:
    """-ln P(right token) at each position, from logits of shape (rows, vocabulary size).

    `right` has the id of the next token in the text.
    """
    import numpy as np

    return np.array([-log_probabilities(row)[token] for row, token in zip(logits, right, strict=True)])


def compare_rows(baseline: NDArray[np.float32], logits: NDArray[np.float32], right: NDArray[np.intp]) -> Figures:
    """`negative_log_likelihood` of the form, `kl_divergence` and `same_top` of each position.

    The divergence is the sum over the vocabulary of P (ln P - ln Q), in nats. Logits are of shape (rows, vocabulary
    size), and are taken row by row: what is in float64 then stays in the processor's cache. Raises EngineError for
    logits that are not finite.
    """
    import numpy as np

    likelihoods, divergences = np.empty(len(right)), np.empty(len(right))
    for index, token in enumerate(right):
        log_p, log_q = log_probabilities(baseline[index]), log_probabilities(logits[index])
        likelihoods[index] = -log_q[token]
        # A dot product would start as many threads as there are cores, for less than they cost.
        divergences[index] = (np.exp(log_p) * (log_p - log_q)).sum()
    same_top = (baseline.argmax(axis=1) == logits.argmax(axis=1)).astype(np.float64)
    return {"negative_log_likelihood": likelihoods, "kl_divergence": divergences, "same_top": same_top}


def mean_of(values: NDArray[np.float64]) -> tuple[float, float | None]:
    """Mean, and its standard error: sample standard deviation / sqrt(count), None for a single value."""
    count = len(values)
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else None


def perplexity_of(negative_log_likelihood: NDArray[np.float64]) -> tuple[float, float | None]:
    """exp(mean), and its standard error: that of the mean times exp(mean)."""
    mean, error = mean_of(negative_log_likelihood)
    return math.exp(mean), error and error * math.exp(mean)


def divergence_of(form: Figures, baseline: NDArray[np.float64]) -> Divergence:
    """What `compare_rows` found at all positions, one at least, with the baseline's -ln P(right token) at the same."""
    import numpy as np

    from localq.measure.reports import Divergence  # its pydantic must not count in a worker's peak memory

    likelihood, divergence = form["negative_log_likelihood"], form["kl_divergence"]
    mean, mean_error = mean_of(divergence)
    median, p90, p95, p99, p99_9, most = np.percentile(divergence, [50, 90, 95, 99, 99.9, 100]).tolist()
    same_top, same_top_error = mean_of(form["same_top"])
    perplexity, perplexity_error = perplexity_of(likelihood)
    log_ratio, log_ratio_error = mean_of(likelihood - baseline)
    change = np.exp(-likelihood) - np.exp(-baseline)
    mean_change, mean_change_error = mean_of(change)
    mean_square, mean_square_error = mean_of(change**2)
    rms = math.sqrt(mean_square)
    return Divergence(
        positions=len(baseline),
        mean_kl_divergence=mean,
        kl_divergence_standard_error=mean_error,
        median_kl_divergence=median,
        p90_kl_divergence=p90,
        p95_kl_divergence=p95,
        p99_kl_divergence=p99,
        p99_9_kl_divergence=p99_9,
        max_kl_divergence=most,
        same_top_fraction=same_top,
        same_top_standard_error=same_top_error,
        perplexity=perplexity,
        perplexity_standard_error=perplexity_error,
        reference_perplexity=perplexity_of(baseline)[0],
        log_perplexity_ratio=log_ratio,
        log_perplexity_ratio_standard_error=log_ratio_error,
        mean_probability_change=mean_change,
        mean_probability_change_standard_error=mean_change_error,
        rms_probability_change=rms,
        # The derivative of a square root, as llama-perplexity has it.
        rms_probability_change_standard_error=mean_square_error / (2 * rms)
        if mean_square_error is not None and rms
        else None,
        max_probability_change=float(np.abs(change).max()),
    )
