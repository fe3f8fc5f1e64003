"""Paired tests on identical examples: McNemar, sign-flip permutation, Holm correction, detectable difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longctx_bench.reporting.stats.confidence_intervals import (
    Z,
    is_rate,
    safe_variance,
    sample_variance,
    student_t_interval,
    too_few_to_resample,
)
from longctx_bench.reporting.stats.resampling import SIGN_FLIPS, sign_flip_sums

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIGNIFICANCE_LEVEL = 0.05
"""Two-sided; two methods differ where the Holm-corrected p-value is below it."""
MIN_DIFFERING_PAIRS = 6
"""Pairs that must differ, all in one direction, for p < 5 %: 2 / 2 ** 6 is 3.1 %, 2 / 2 ** 5 is 6.3 %."""
MCNEMAR = "McNemar, exact"
PERMUTATION_EXACT = "permutation, exact"
PERMUTATION = "permutation, 9,999 draws"
_MAX_ENUMERATED_PAIRS = 13
"""Up to this many differing pairs, all sign vectors are enumerated: 2 ** 13 is fewer than the random ones."""


@dataclass(frozen=True)
class PairedResult:
    """Result of a paired comparison of two methods."""

    n: int
    """Number of pairs."""
    mean_a: float
    mean_b: float
    difference: float
    """Mean of a - b."""
    low: float
    high: float
    """95 % interval of the difference."""
    p: float
    """Two-sided p-value, uncorrected."""
    test: str
    wins: int
    """Examples on which ``a`` is better."""
    ties: int
    losses: int


def paired_comparison(
    a: Sequence[float] | NDArray[np.float64],
    b: Sequence[float] | NDArray[np.float64],
    bounded: bool = True,
    higher_is_better: bool = True,
) -> PairedResult:
    """Compare two methods on the same examples; deterministic.

    - Scores that are all 0 or 1: McNemar's exact test (two-sided binomial on the pairs that differ; McNemar 1947), and
      Bonett and Price's adjusted Wald interval of paired proportions (2012, J. Educ. Behav. Stat. 37).
      The exact test is conservative: its false-positive rate is below 5 %, far below where few pairs differ.
    - Others: a permutation test of the mean difference by sign flips (Fisher 1935): over all sign vectors where at most
      13 pairs differ, else over the observed signs and 9,999 random ones (:func:`.resampling.sign_flip_sums`). The
      observed signs count as a hit, so that p is never below 0.0001 (Phipson and Smyth 2010). The interval is
      Student's t of the differences: these are nearly symmetric, and it keeps its coverage from 20 pairs on, where a
      bootstrap falls to 90 %. Where too few of bounded differences are distinct (:func:`.too_few_to_resample`), it is
      Bonett and Price's with the sums of the gains and of the losses in place of the counts: no differences with those
      sums vary more than whole ones.

    Args:
        a: [n], scores of one method.
        b: [n], scores of the other on the same examples in the same order.
        bounded: whether scores lie in [0, 1].
        higher_is_better: decides wins and losses; the difference is a - b either way.

    Raises:
        ValueError: the lengths differ, there are no scores, or one is not finite.
    """
    left, right = _scores(a, b)
    differences = left - right
    test, p = paired_test(left, right, bounded)
    low, high = _bonett_price(differences) if test == MCNEMAR else _interval(differences, bounded)
    num_positive, num_negative = _count_signs(differences)
    wins, losses = (num_positive, num_negative) if higher_is_better else (num_negative, num_positive)
    means = float(left.mean()), float(right.mean())
    n = left.size
    return PairedResult(n, *means, float(differences.mean()), low, high, p, test, wins, n - wins - losses, losses)


def paired_test(
    a: Sequence[float] | NDArray[np.float64], b: Sequence[float] | NDArray[np.float64], bounded: bool = True
) -> tuple[str, float]:
    """Return name and p-value of the test that :func:`paired_comparison` uses, without the interval."""
    left, right = _scores(a, b)
    differences = left - right
    if bounded and is_rate(left) and is_rate(right):
        return MCNEMAR, _mcnemar(*_count_signs(differences))
    return _permutation(differences[differences != 0])


def min_attainable_p(
    scores: Sequence[float] | NDArray[np.float64], bounded: bool = True, higher_is_better: bool = True
) -> float:
    """Return the smallest p-value that a paired test of a method against a worse one can reach.

    A two-sided p is at least 2 / 2 ** k where k pairs favour the method. McNemar's test and sign flips reach that bound
    where these k are the only pairs that differ. An example can favour a method only if a worse score exists: k is the
    number of scores above 0 (below 1 where lower is better), and n for losses.

    Args:
        scores: [n], scores of the better method.
        bounded: whether scores lie in [0, 1].
        higher_is_better: which end of that range is the worst.
    """
    values = np.asarray(scores, dtype=np.float64)
    worst = 0.0 if higher_is_better else 1.0
    num_winnable = int(np.count_nonzero(values != worst)) if bounded else len(values)
    return min(1.0, 2.0 ** (1 - num_winnable))


def min_detectable_difference(scores: Sequence[float] | NDArray[np.float64], bounded: bool = True) -> float:
    """Return the smallest difference between two methods that the paired test can call significant on n examples.

    This is what :func:`paired_test` needs for p < 5 %, before correction for multiple tests. A true difference of just
    that size is detected in about half of all runs; reliable detection takes more examples.

    - Scores that are all 0 or 1 (McNemar, exact): one method wins on :data:`MIN_DIFFERING_PAIRS` examples and
      loses on none, 6 / n. Where more pairs differ, a larger difference is needed.
    - Others (permutation): under random signs the sum of the differences d has the variance sum(d^2), and is beyond
      1.960 sqrt(sum(d^2)) with a probability of 5 % (normal approximation). A single cell has no partner: d is taken
      as the difference of two random examples of it, of variance 2 v, shifted by the mean difference m; v is the
      variance of the scores (:func:`.safe_variance` of bounded ones). Then sum(d^2) = n (2 v + m^2), and the
      smallest n m that reaches its own limit has m = 1.960 sqrt(2 v / (n - 1.960^2)). Where methods
      agree on which examples are hard, smaller differences are detectable.

    Args:
        scores: [n], one per example.
        bounded: whether scores lie in [0, 1].

    Returns:
        The difference in the unit of the scores; infinite below six examples, where no paired test reaches 5 %, and
        where the spread is unknown.
    """
    values = np.asarray(scores, dtype=np.float64)
    n = len(values)
    if n < MIN_DIFFERING_PAIRS or not np.isfinite(values).all():
        return math.inf
    if bounded and is_rate(values):
        return MIN_DIFFERING_PAIRS / n
    variance = safe_variance(values) if bounded else sample_variance(values)
    return Z * math.sqrt(2 * variance / (n - Z**2)) if variance > 0 else math.inf


def holm_correction(p_values: Sequence[float]) -> list[float]:
    """Return Holm-corrected p-values in the order given (Holm 1979).

    This controls the family-wise error rate: the chance of any false positive at corrected p < 5 % is below 5 %.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [1.0] * len(p_values)
    running_max = 0.0
    for rank, index in enumerate(order):
        running_max = max(running_max, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running_max
    return corrected


def _scores(
    a: Sequence[float] | NDArray[np.float64], b: Sequence[float] | NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1 or not left.size:
        raise ValueError(f"scores to pair have the shapes {left.shape} and {right.shape}")
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        raise ValueError("scores to pair must be finite")
    return left, right


def _count_signs(differences: NDArray[np.float64]) -> tuple[int, int]:
    return int(np.count_nonzero(differences > 0)), int(np.count_nonzero(differences < 0))


def _mcnemar(num_positive: int, num_negative: int) -> float:
    from scipy.special import bdtr

    n = num_positive + num_negative
    return min(1.0, 2 * float(bdtr(min(num_positive, num_negative), n, 0.5))) if n else 1.0


def _permutation(differences: NDArray[np.float64]) -> tuple[str, float]:
    """Return name and p-value of the sign-flip test of non-zero differences [k]."""
    observed = abs(float(differences.sum()))
    # Sums that differ only in their last digits (summation order, float32) count as equal.
    threshold = observed - 1e-6 * float(np.abs(differences).sum())
    if len(differences) <= _MAX_ENUMERATED_PAIRS:
        sums = np.zeros(1)
        for difference in differences:
            sums = np.concatenate((sums + difference, sums - difference))
        return PERMUTATION_EXACT, float((np.abs(sums) >= threshold).mean())
    hits = int(np.count_nonzero(np.abs(sign_flip_sums(differences)) >= np.float32(threshold)))
    return PERMUTATION, hits / SIGN_FLIPS


def _interval(differences: NDArray[np.float64], bounded: bool) -> tuple[float, float]:
    if bounded and too_few_to_resample(differences):
        return _bonett_price(differences)
    low, high = student_t_interval(differences)
    return (max(-1.0, low), min(1.0, high)) if bounded else (low, high)


def _bonett_price(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two paired proportions; conservative for graded scores."""
    n = len(differences)
    gains = (float(differences[differences > 0].sum()) + 1) / (n + 2)
    losses = (1 - float(differences[differences < 0].sum())) / (n + 2)
    half = Z * math.sqrt((gains + losses - (gains - losses) ** 2) / (n + 2))
    return max(-1.0, gains - losses - half), min(1.0, gains - losses + half)
