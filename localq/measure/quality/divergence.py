"""How far a form's predictions are from the reference's, in numbers that people know from llama-perplexity.

At each scored position both models give a probability to every token of the vocabulary: P the reference, Q the form.
`compare_rows` computes what a position says, `divergence_of` what all of them say. Knows no models and no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from localq.measure.quality.reference_logits import blocks, decode_tail, require_finite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Positions:
    """What single positions say; arrays of float64, all of one length."""

    negative_log_likelihood: NDArray[np.float64]
    """-ln Q(right token), where the right one is the text's next token."""
    kl_divergence: NDArray[np.float64]
    """Sum over the vocabulary of P (ln P - ln Q)."""
    same_top: NDArray[np.float64]
    """1 where P and Q are largest for the same token, else 0."""
    largest_change: NDArray[np.float64]
    """Largest |ln Q - ln P| among the 1,024 tokens that P is largest for."""
    mean_change: NDArray[np.float64]
    """Mean |ln Q - ln P| among them."""


def joined(parts: Sequence[Positions]) -> Positions:
    """One after the other."""
    import numpy as np

    names = [field.name for field in fields(Positions)]
    return Positions(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def compare_rows(rows: NDArray[np.void], logits: NDArray[np.float32], right: NDArray[np.intp]) -> Positions:
    """Compare a form's logits, shape (rows, vocabulary size), with the reference's packed ones; `right` are token ids.

    Raises EngineError for logits that are no numbers.
    """
    parts = [_compare(rows[block], logits[block], right[block]) for block in blocks(*logits.shape)]
    positions = joined(parts)
    require_finite(positions.kl_divergence)
    return positions


def negative_log_likelihoods(
    rows: NDArray[np.void], logits: NDArray[np.float32], right: NDArray[np.intp]
) -> NDArray[np.float64]:
    """-ln P(right token) at each position, from the reference's own logits and what was packed of them."""
    import numpy as np

    likelihoods: NDArray[np.float64] = rows["log_sum_exp"] - logits[np.arange(len(right)), right]
    return likelihoods


def _compare(rows: NDArray[np.void], logits: NDArray[np.float32], right: NDArray[np.intp]) -> Positions:
    import numpy as np

    ids = rows["ids"].astype(np.intp)
    kept = np.take_along_axis(logits, ids, axis=1)
    likeliest = logits.argmax(axis=1)
    log_sum_exp = _log_sum_exp(logits, ids, kept)
    log_p = rows["logits"].astype(np.float64) - rows["log_sum_exp"][:, None]
    change = kept.astype(np.float64) - log_sum_exp[:, None] - log_p
    kl_divergence = -(np.exp(log_p) * change).sum(axis=1)
    if rows["codes"].shape[1]:
        kl_divergence += _tail_divergence(rows, logits, log_sum_exp)
    absolute = np.abs(change, out=change)
    return Positions(
        negative_log_likelihood=log_sum_exp - logits[np.arange(len(right)), right],
        kl_divergence=kl_divergence,
        same_top=(likeliest == rows["likeliest"]).astype(np.float64),
        largest_change=absolute.max(axis=1),
        mean_change=absolute.mean(axis=1),
    )


def _log_sum_exp(logits: NDArray[np.float32], ids: NDArray[np.intp], kept: NDArray[np.float32]) -> NDArray[np.float64]:
    """ln of the sum of exponentials of each row; those of `ids`, most of the sum, computed in float64."""
    import numpy as np

    largest = logits.max(axis=1, keepdims=True)
    powers = np.exp(logits - largest)
    np.put_along_axis(powers, ids, 0, axis=1)
    whole = np.exp(kept.astype(np.float64) - largest).sum(axis=1) + powers.sum(axis=1, dtype=np.float64)
    log_sum_exp: NDArray[np.float64] = largest[:, 0] + np.log(whole)
    return log_sum_exp


def _tail_divergence(
    rows: NDArray[np.void], logits: NDArray[np.float32], log_sum_exp: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The tail's part of the sum: P(tail) times the mean of ln P - ln Q in it, weighted by P."""
    import numpy as np

    tail = decode_tail(rows)
    offset = tail.log_base + log_sum_exp
    rounded = offset.astype(np.float32)
    difference = tail.heights
    difference -= logits
    difference += rounded[:, None]
    difference *= tail.powers
    mean = difference.sum(axis=1, dtype=np.float64) / tail.powers_sum + (offset - rounded)
    part: NDArray[np.float64] = tail.probability * mean
    return part


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over positions."""

    value: float
    standard_error: float | None
    """As if positions were independent, as llama-perplexity has it; within a window they are not quite. None for a
    single position."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """What all positions say of a form. A percentile lies between two positions' values, interpolated linearly."""

    positions: int
    mean_kl_divergence: float
    """Mean of the positions' divergences, in nats. 0 where the form foretells what the reference does."""
    kl_divergence_standard_error: float | None
    """Sample standard deviation / sqrt(positions), as that of every mean here."""
    median_kl_divergence: float
    p90_kl_divergence: float
    p95_kl_divergence: float
    p99_kl_divergence: float
    p99_9_kl_divergence: float
    max_kl_divergence: float
    same_top_fraction: float
    """Share f of the positions where both hold the same token likeliest."""
    same_top_standard_error: float | None
    """sqrt(f (1 - f) / (positions - 1))."""
    perplexity: float
    """exp(mean of -ln Q(right token))."""
    perplexity_standard_error: float | None
    """Perplexity x standard error of that mean."""
    reference_perplexity: float
    log_perplexity_ratio: float
    """ln(perplexity / reference perplexity): the mean of ln P - ln Q of the right token."""
    log_perplexity_ratio_standard_error: float | None
    mean_probability_change: float
    """Mean of Q - P of the right token: llama-perplexity's mean delta-p, as a fraction."""
    mean_probability_change_standard_error: float | None
    rms_probability_change: float
    """sqrt(mean of (Q - P) squared): its RMS delta-p."""
    rms_probability_change_standard_error: float | None
    """Standard error of the mean square / (2 x RMS)."""
    max_probability_change: float
    """Largest |Q - P| of the right token."""
    max_log_probability_change: float
    """Largest |ln Q - ln P| at any position, among the 1,024 tokens that the reference holds likeliest there."""
    mean_log_probability_change: float
    """Mean |ln Q - ln P| among them, over all positions."""


def mean_of(values: NDArray[np.float64]) -> Estimate:
    """Mean and standard error."""
    count = len(values)
    error = float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else None
    return Estimate(float(values.mean()), error)


def perplexity_of(negative_log_likelihood: NDArray[np.float64]) -> Estimate:
    """exp(mean), and the mean's standard error times that."""
    mean = mean_of(negative_log_likelihood)
    value = math.exp(mean.value)
    return Estimate(value, _scaled(mean.standard_error, value))


def divergence_of(form: Positions, reference_negative_log_likelihood: NDArray[np.float64]) -> Divergence:
    """What a form's positions say beside the reference's -ln P(right token) at the same ones; one at least."""
    import numpy as np

    reference = reference_negative_log_likelihood
    kl_divergence, same_top = mean_of(form.kl_divergence), mean_of(form.same_top)
    median, p90, p95, p99, p99_9, most = np.percentile(form.kl_divergence, [50, 90, 95, 99, 99.9, 100]).tolist()
    perplexity = perplexity_of(form.negative_log_likelihood)
    log_ratio = mean_of(form.negative_log_likelihood - reference)
    change = np.exp(-form.negative_log_likelihood) - np.exp(-reference)
    mean_change, mean_square = mean_of(change), mean_of(change**2)
    rms = math.sqrt(mean_square.value)
    return Divergence(
        positions=len(reference),
        mean_kl_divergence=kl_divergence.value,
        kl_divergence_standard_error=kl_divergence.standard_error,
        median_kl_divergence=median,
        p90_kl_divergence=p90,
        p95_kl_divergence=p95,
        p99_kl_divergence=p99,
        p99_9_kl_divergence=p99_9,
        max_kl_divergence=most,
        same_top_fraction=same_top.value,
        same_top_standard_error=same_top.standard_error,
        perplexity=perplexity.value,
        perplexity_standard_error=perplexity.standard_error,
        reference_perplexity=perplexity_of(reference).value,
        log_perplexity_ratio=log_ratio.value,
        log_perplexity_ratio_standard_error=log_ratio.standard_error,
        mean_probability_change=mean_change.value,
        mean_probability_change_standard_error=mean_change.standard_error,
        rms_probability_change=rms,
        rms_probability_change_standard_error=_scaled(mean_square.standard_error, 0.5 / rms) if rms else None,
        max_probability_change=float(np.abs(change).max()),
        max_log_probability_change=float(form.largest_change.max()),
        mean_log_probability_change=float(form.mean_change.mean()),
    )


def _scaled(standard_error: float | None, factor: float) -> float | None:
    return None if standard_error is None else standard_error * factor
