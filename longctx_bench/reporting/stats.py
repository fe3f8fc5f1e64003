"""Intervals around a cell's mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

_Z = 1.959963984540054
"""97.5th percentile of the normal distribution: 95 % two-sided."""


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a rate (Wilson 1927): right at 0 and 1, where the usual one has no width."""
    if n == 0:
        return 0.0, 1.0
    rate = successes / n
    centre = rate + _Z**2 / (2 * n)
    half = _Z * math.sqrt(rate * (1 - rate) / n + _Z**2 / (4 * n * n))
    scale = 1 + _Z**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mean_interval(scores: Sequence[float], bounded: bool = True) -> tuple[float, float]:
    """Return a 95 % interval of a mean.

    Wilson's for scores of 0 and 1. Graded scores get Wilson's with the number of successes that has the same
    mean; their variance is at most that of a rate, so the interval is on the safe side.

    Args:
        scores: one an example.
        bounded: they lie in [0, 1]; Student's t interval where they do not (losses).
    """
    if bounded:
        return wilson(sum(scores), len(scores))
    mean = fmean(scores)
    if len(scores) < 2:
        return -math.inf, math.inf
    from scipy.stats import t

    half = float(t.ppf(0.975, len(scores) - 1)) * stdev(scores) / math.sqrt(len(scores))
    return mean - half, mean + half
