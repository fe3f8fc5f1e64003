"""95 % confidence intervals of a mean: Wilson, BCa bootstrap, Student's t."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from longctx_bench.reporting.stats.resampling import RESAMPLES, bootstrap_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

Z = 1.959963984540054
"""97.5th percentile of the standard normal distribution: 95 % two-sided."""
_MIN_UNCOMMON = 10
"""Scores that must differ from the most common one, out of at least twice as many, for a bootstrap to be valid."""
_MAX_BOOTSTRAP_EXAMPLES = 1_000
"""Above this size, the closed-form limit of the bootstrap is as accurate as drawing samples."""


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a rate (Wilson 1927), which is valid at 0 and 1, too."""
    if n == 0:
        return 0.0, 1.0
    rate = min(1.0, max(0.0, successes / n))
    centre = rate + Z**2 / (2 * n)
    half = Z * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n * n))
    scale = 1 + Z**2 / n
    # At 0 and 1 the bound is the rate itself; rounding may miss it by the last digit.
    return min(rate, max(0.0, (centre - half) / scale)), max(rate, min(1.0, (centre + half) / scale))


def mean_interval(scores: Sequence[float] | NDArray[np.float64], bounded: bool = True) -> tuple[float, float]:
    """Return a 95 % interval of a mean; deterministic.

    - Scores that are all 0 or 1: Wilson's (:func:`wilson_interval`).
    - Graded scores in [0, 1]: the bias-corrected and accelerated bootstrap (:func:`bca_interval`).
    - Fewer than 20 graded scores, or fewer than ten that differ from the most common one: Wilson's, with the number
      of successes that has the same mean. Resampling would underestimate the spread of such scores, and give a width
      of 0 where all are equal. No score in [0, 1] varies more than a rate of the same mean, so this interval is
      conservative.
    - Unbounded scores (losses): Student's t; infinite on both sides for fewer than two examples or equal scores.
    - Scores that are not all finite: the whole range.

    Args:
        scores: [n], one per example.
        bounded: whether scores lie in [0, 1].
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
    """Return the variance of scores in [0, 1], which is never 0.

    For rates, and for graded scores that are too few to resample (:func:`too_few_to_resample`), it is that of a rate
    p = (successes + 2) / (n + 4) (Agresti and Coull 1998), which is not 0 at 0 or 1.
    """
    if is_rate(values) or too_few_to_resample(values):
        rate = (float(values.sum()) + 2) / (len(values) + 4)
        return rate * (1 - rate)
    return sample_variance(values)


def is_rate(values: NDArray[np.float64]) -> bool:
    """Whether every score is 0 or 1."""
    return bool(((values == 0) | (values == 1)).all())


def too_few_to_resample(values: NDArray[np.float64]) -> bool:
    """Whether scores cannot be resampled: fewer than 20, or fewer than ten that differ from the most common one."""
    if len(values) < 2 * _MIN_UNCOMMON:
        return True
    ordered = np.sort(values)
    # Ten scores differ from the most common one exactly when no run of equal scores reaches n - 9.
    run = len(values) - _MIN_UNCOMMON + 1
    return bool((ordered[run - 1 :] == ordered[: len(values) - run + 1]).any())


def student_t_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return Student's 95 % t interval of a mean; infinite for fewer than two values or equal ones."""
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
    sum(d^3) / (6 sum(d^2)^1.5) with d the deviations from the mean. All cells of one size share their resamples.
    Above 1,000 values the bootstrap quantiles come from their Edgeworth expansion (DiCiccio and Efron 1992).

    Args:
        values: [n], not all equal.
    """
    from scipy.special import ndtr, ndtri

    mean = float(values.mean())
    deviations = values - mean
    squares = float(deviations @ deviations)
    acceleration = float((deviations**3).sum()) / (6 * squares**1.5)
    if len(values) > _MAX_BOOTSTRAP_EXAMPLES:
        bias = acceleration
        resampled = None
    else:
        resampled = deviations.astype(np.float32) @ bootstrap_weights(len(values))
        resampled.sort()
        # Resampled means equal to the mean count half on either side; float32 may move them by the last digit.
        rounding = 1e-6 * float(np.abs(deviations).max())
        below, not_above = np.searchsorted(resampled, (-rounding, rounding))
        bias = float(ndtri((below + not_above) / (2 * RESAMPLES)))
    bounds = []
    for z in (-Z, Z):
        shifted = bias + (bias + z) / (1 - acceleration * (bias + z))
        if resampled is None:
            # The skewness of a bootstrap mean is six times the acceleration.
            bounds.append(mean + math.sqrt(squares) / len(values) * (shifted + acceleration * (shifted**2 - 1)))
        else:
            position = float(ndtr(shifted)) * (RESAMPLES - 1)
            lower = int(position)
            upper = min(lower + 1, RESAMPLES - 1)
            bounds.append(
                mean + float(resampled[lower]) + (position - lower) * float(resampled[upper] - resampled[lower])
            )
    return bounds[0], bounds[1]


def sample_variance(values: NDArray[np.float64]) -> float:
    """Return the unbiased variance; 0 for fewer than two values."""
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0
