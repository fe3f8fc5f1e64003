"""Intervals around a cell's mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from longctx_bench.reporting.stats.resampling import RESAMPLES, bootstrap_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

Z = 1.959963984540054
"""97.5th percentile of the normal distribution: 95 % two-sided."""
_FEWEST = 10
"""So many scores must differ from the commonest one, of twice as many, before resampling them shows their spread."""
_BOOTSTRAPPED = 1_000
"""Up to so many examples the bootstrap is drawn; beyond, its limit in closed form is as exact as the drawing."""


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a rate (Wilson 1927): right at 0 and 1, where the usual one has no width."""
    if n == 0:
        return 0.0, 1.0
    rate = min(1.0, max(0.0, successes / n))
    centre = rate + Z**2 / (2 * n)
    half = Z * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n * n))
    scale = 1 + Z**2 / n
    # At 0 and 1 the bound is the rate itself, which rounding may miss by a last digit.
    return min(rate, max(0.0, (centre - half) / scale)), max(rate, min(1.0, (centre + half) / scale))


def mean_interval(scores: Sequence[float] | NDArray[np.float64], bounded: bool = True) -> tuple[float, float]:
    """Return a 95 % interval of a mean; the same one for the same scores, always.

    - Scores that are all 0 or 1: Wilson's (:func:`wilson_interval`).
    - Graded scores in [0, 1]: the bias-corrected and accelerated bootstrap (:func:`bca_interval`).
    - Fewer than 20 graded scores, or fewer than ten that differ from the commonest one: Wilson's with the number of
      successes that has the same mean. Resampling such scores shows too little of their spread, and none at all
      where they are equal. No score in [0, 1] varies more than a rate of the same mean, so this interval is on the
      safe side; it always has a width.
    - Unbounded scores (losses): Student's t, without end on both sides where fewer than two examples, or equal ones,
      say nothing about the spread.
    - Scores of which one is no finite number: everything that could be.

    Args:
        scores: [n], one an example.
        bounded: they lie in [0, 1].
    """
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all():
        return (0.0, 1.0) if bounded else (-math.inf, math.inf)
    if not bounded:
        return student_t_interval(values)
    if is_rate(values) or too_few_to_resample(values):
        return wilson_interval(float(values.sum()), len(values))
    low, high = bca_interval(values)
    return max(0.0, low), min(1.0, high)


def safe_variance(values: NDArray[np.float64]) -> float:
    """Return the variance of scores in [0, 1], never 0.

    For rates, and for graded scores that are too few to resample (:func:`too_few_to_resample`), it is that of a rate
    p = (successes + 2) / (n + 4) (Agresti and Coull 1998), which is not 0 at 0 or 1.
    """
    if is_rate(values) or too_few_to_resample(values):
        rate = (float(values.sum()) + 2) / (len(values) + 4)
        return rate * (1 - rate)
    return sample_variance(values)


def is_rate(values: NDArray[np.float64]) -> bool:
    """Tell whether every score is 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def too_few_to_resample(values: NDArray[np.float64]) -> bool:
    """Tell whether scores are too few to resample: below 20, or fewer than ten that differ from the commonest one."""
    if len(values) < 2 * _FEWEST:
        return True
    ordered = np.sort(values)
    # Ten differ from every score exactly when no run of equal ones reaches n - 9.
    run = len(values) - _FEWEST + 1
    return bool((ordered[run - 1 :] == ordered[: len(values) - run + 1]).any())


def student_t_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return Student's 95 % interval of a mean; endless where fewer than two values or equal ones show no spread."""
    variance = sample_variance(values)
    if not variance > 0:
        return -math.inf, math.inf
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.975)) * math.sqrt(variance / len(values))
    mean = float(values.mean())
    return mean - half, mean + half


def bca_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the bias-corrected and accelerated 95 % bootstrap interval of a mean.

    Efron 1987; Efron and Tibshirani 1993, equations 14.9 to 14.15. The acceleration is the jackknife's, for a mean
    sum(d^3) / (6 sum(d^2)^1.5) with d the distances from the mean. All cells of one size share their resamples.
    Beyond 1,000 values the quantiles of the bootstrap come from its Edgeworth expansion (DiCiccio and Efron 1992).

    Args:
        values: [n], not all equal.
    """
    from scipy.special import ndtr, ndtri

    mean = float(values.mean())
    distances = values - mean
    squares = float(distances @ distances)
    acceleration = float((distances**3).sum()) / (6 * squares**1.5)
    if len(values) > _BOOTSTRAPPED:
        bias = acceleration
        drawn = None
    else:
        drawn = distances.astype(np.float32) @ bootstrap_weights(len(values))
        drawn.sort()
        # Samples with the very mean count half on either side; float32 may have moved them by a last digit.
        rounding = 1e-6 * float(np.abs(distances).max())
        below, not_above = np.searchsorted(drawn, (-rounding, rounding))
        bias = float(ndtri((below + not_above) / (2 * RESAMPLES)))
    ends = []
    for z in (-Z, Z):
        shifted = bias + (bias + z) / (1 - acceleration * (bias + z))
        if drawn is None:
            # The skewness of a bootstrap mean is six times the acceleration.
            ends.append(mean + math.sqrt(squares) / len(values) * (shifted + acceleration * (shifted**2 - 1)))
        else:
            place = float(ndtr(shifted)) * (RESAMPLES - 1)
            lower = int(place)
            upper = min(lower + 1, RESAMPLES - 1)
            ends.append(mean + float(drawn[lower]) + (place - lower) * float(drawn[upper] - drawn[lower]))
    return ends[0], ends[1]


def sample_variance(values: NDArray[np.float64]) -> float:
    """Return the unbiased variance; 0 of fewer than two values."""
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0
