"""Which form is nearer to the reference, where the windows show it, and whether the engines can be compared at all.

Knows statistics; computes no model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from localq.measure.forms import Form
from localq.measure.quality.results import EvalResult, Nearness
from localq.measure.speed.intervals import student_quantile
from localq.measure.speed.results import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST_NOISE_FLOOR = 1e-3
"""Mean divergence between the engines' unquantized forms, in nats, above which they don't compute the same model. 8-bit
quantization costs that much (llama.cpp's table for an 8B Llama 3 has 0.0014 for Q8_0, half of it from storing logits
in 16 bits); bfloat16 against float16 costs 0.000025. The share of same top tokens is not asked: where two tokens are
all but equally likely, it falls without anything being wrong."""
LARGEST_NOISE_SHARE = 0.1
"""Of a form's mean divergence, above which the engines' own difference would be taken for quantization."""


def paired_interval(differences: NDArray[np.float64]) -> Interval:
    """Mean of differences and the ends of its 95% confidence interval: mean +- t x sample deviation / sqrt(count).

    Two differences at least. Student's t, because there may be few windows.
    """
    count = len(differences)
    mean = float(differences.mean())
    margin = student_quantile(count - 1) * float(differences.std(ddof=1)) / math.sqrt(count)
    return Interval(mean, mean - margin, mean + margin)


def nearness_of(
    results: Sequence[EvalResult], window_divergences: Mapping[Form, NDArray[np.float64]], floor: EvalResult | None
) -> tuple[Nearness, ...]:
    """Every two forms compared, by the mean divergence of each window; none for a single window.

    Positions of a window depend on each other, so windows are what is counted.
    """
    if any(len(values) < 2 for values in window_divergences.values()):
        return ()
    noise = floor.divergence.mean_kl_divergence if floor else 0.0
    found = []
    for one, other in itertools.combinations(results, 2):
        nearer, farther = sorted((one, other), key=lambda result: result.divergence.mean_kl_divergence)
        difference = paired_interval(window_divergences[farther.form] - window_divergences[nearer.form])
        least = noise if one.form.format != other.form.format else 0.0
        found.append(Nearness(nearer.form.name, farther.form.name, difference, difference.low > max(least, 0.0)))
    return tuple(found)


def engine_warnings(results: Sequence[EvalResult], floor: EvalResult | None) -> list[str]:
    """What the noise floor makes doubtful."""
    if floor is None:
        return []
    noise = floor.divergence.mean_kl_divergence
    if noise > LARGEST_NOISE_FLOOR:
        return [
            f"the engines disagree on this model: {floor.form.name} is not quantized and has a mean KL divergence of "
            f"{noise:.2g}, so that figures across engines don't tell what quantization cost"
        ]
    return [
        f"of the mean KL divergence of {result.form.name}, {noise / result.divergence.mean_kl_divergence:.0%} is the "
        "engines' own difference"
        for result in results
        if result.form.format == floor.form.format
        and result.form != floor.form
        and noise > LARGEST_NOISE_SHARE * result.divergence.mean_kl_divergence
    ]
