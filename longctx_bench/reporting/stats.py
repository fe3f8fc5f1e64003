"""Intervals around a cell's mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def mean_interval(scores: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % interval of the mean of scores in [0, 1].

    Wilson's for scores of 0 and 1. Graded scores get Wilson's with the number of successes that has the same
    mean; their variance is at most that of a rate, so the interval is on the safe side.
    """
    return wilson(sum(scores), len(scores))
