"""Two methods on the same examples: the difference, its interval, whether it could be chance, and what n can show."""

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
"""Of significance, two-sided: corrected p-values below it tell two methods apart."""
MIN_DIFFERING_PAIRS = 6
"""Pairs that must differ, all in one direction, for p < 5 %: 2 / 2 ** 6 is 3.1 %, 2 / 2 ** 5 is 6.3 %."""
MCNEMAR = "McNemar, exact"
PERMUTATION_EXACT = "permutation, exact"
PERMUTATION = "permutation, 9,999 draws"
_ENUMERATED = 13
"""Pairs that differ, up to which all sign vectors are tried: 2 ** 13 of them are fewer than the random ones."""


@dataclass(frozen=True)
class PairedResult:
    """Two methods' scores on the same examples, compared."""

    n: int
    """Pairs."""
    mean_a: float
    mean_b: float
    difference: float
    """Mean of a - b."""
    low: float
    high: float
    """95 % interval of the difference."""
    p: float
    """Two-sided: how often chance alone would give a difference at least so far from 0."""
    test: str
    wins: int
    """Examples on which a is better."""
    ties: int
    losses: int


def paired_comparison(
    a: Sequence[float] | NDArray[np.float64],
    b: Sequence[float] | NDArray[np.float64],
    bounded: bool = True,
    higher_is_better: bool = True,
) -> PairedResult:
    """Compare two methods on the same examples; the same answer for the same scores, always.

    - Scores that are all 0 or 1: McNemar's exact test (two-sided binomial on the pairs that differ; McNemar 1947), and
      Bonett and Price's adjusted Wald interval of paired proportions (2012, J. Educ. Behav. Stat. 37).
      The exact test is conservative: its false-positive rate lies below 5 %, far below with few pairs that differ.
    - Others: a permutation test of the mean difference by sign flips (Fisher 1935): over all sign vectors where at most
      13 pairs differ, else over the observed signs and 9,999 random ones (:func:`.resampling.sign_flip_sums`). The
      observed signs count as a hit, so that p is never below 0.0001 (Phipson and Smyth 2010). The interval is
      Student's t of the differences: these are nearly symmetric, and it keeps its coverage from 20 pairs on, where a
      bootstrap falls to 90 %. Where too few of bounded differences are distinct (:func:`.too_few_to_resample`), it is
      Bonett and Price's with the sums of the gains and of the losses in place of the counts: no differences with those
      sums vary more than whole ones.

    Args:
        a: [n], one method's scores.
        b: [n], the other's on the same examples in the same order.
        bounded: the scores lie in [0, 1].
        higher_is_better: decides who wins a pair; the difference is a - b all the same.

    Raises:
        ValueError: the lengths differ, or there is nothing to compare.
    """
    left, right = _scores(a, b)
    differences = left - right
    test, p = paired_test(left, right, bounded)
    low, high = _bonett_price(differences) if test == MCNEMAR else _interval(differences, bounded)
    above, below = _signs(differences)
    wins, losses = (above, below) if higher_is_better else (below, above)
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
        return MCNEMAR, _mcnemar(*_signs(differences))
    return _permutation(differences[differences != 0])


def min_attainable_p(
    scores: Sequence[float] | NDArray[np.float64], bounded: bool = True, higher_is_better: bool = True
) -> float:
    """Return a bound below which no paired test of a method against another one that is worse can come.

    A two-sided p is never below 2 / 2 ** k where k pairs speak for the method: of McNemar's binomial, and of sign
    flips, it is reached where all pairs that differ are those k. An example can speak for a method only if something
    worse than its score exists: k is the number of scores above 0 (below 1 where lower is better), and n for losses.

    Args:
        scores: [n], the better method's.
        bounded: they lie in [0, 1].
        higher_is_better: which end of that range is the worst.
    """
    values = np.asarray(scores, dtype=np.float64)
    worst = 0.0 if higher_is_better else 1.0
    could_win = int(np.count_nonzero(values != worst)) if bounded else len(values)
    return min(1.0, 2.0 ** (1 - could_win))


def min_detectable_difference(scores: Sequence[float] | NDArray[np.float64], bounded: bool = True) -> float:
    """Return the smallest difference between two methods on these n examples that the paired test can call significant.

    It is what :func:`paired_test` needs for p below 5 %, before a correction for several tests. A true difference of
    just that size is found in about every second run; to find it for certain takes more examples.

    - Scores that are all 0 or 1 (McNemar, exact): one method wins on :data:`MIN_DIFFERING_PAIRS` examples and
      loses on none, 6 / n. With more pairs that differ, more is needed.
    - Others (permutation): under random signs the sum of the differences d has the variance sum(d^2), and is beyond
      1.960 sqrt(sum(d^2)) with a probability of 5 % (normal approximation). A cell alone knows no partner: d is taken
      as the difference of two of its examples at random, of variance 2 v, moved by the mean difference m; v is the
      variance of the scores (:func:`.safe_variance` of bounded ones). Then sum(d^2) = n (2 v + m^2), and the
      smallest n m that reaches its own limit has m = 1.960 sqrt(2 v / (n - 1.960^2)). Methods that agree on how hard
      an example is differ less on it, and show smaller differences.

    Args:
        scores: [n], one an example.
        bounded: they lie in [0, 1].

    Returns:
        In the unit of the scores. Infinite below six examples, where no paired test reaches 5 %, and where nothing is
        known of the spread.
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
    """Return p-values corrected for their number, in the order given (Holm 1979).

    The chance of even one false positive among all tests whose corrected p is below 5 % is then below 5 %.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
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


def _signs(differences: NDArray[np.float64]) -> tuple[int, int]:
    return int(np.count_nonzero(differences > 0)), int(np.count_nonzero(differences < 0))


def _mcnemar(above: int, below: int) -> float:
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(above, below), above + below, 0.5))) if above + below else 1.0


def _permutation(differences: NDArray[np.float64]) -> tuple[str, float]:
    """Return the name and the p-value of the sign-flip test of differences [k] of which none is 0."""
    observed = abs(float(differences.sum()))
    # Sums of the same numbers in another order, or in float32, differ in their last digits: those count as equal.
    reached = observed - 1e-6 * float(np.abs(differences).sum())
    if len(differences) <= _ENUMERATED:
        sums = np.zeros(1)
        for difference in differences:
            sums = np.concatenate((sums + difference, sums - difference))
        return PERMUTATION_EXACT, float((np.abs(sums) >= reached).mean())
    hits = int(np.count_nonzero(np.abs(sign_flip_sums(differences)) >= np.float32(reached)))
    return PERMUTATION, hits / SIGN_FLIPS


def _interval(differences: NDArray[np.float64], bounded: bool) -> tuple[float, float]:
    if bounded and too_few_to_resample(differences):
        return _bonett_price(differences)
    low, high = student_t_interval(differences)
    return (max(-1.0, low), min(1.0, high)) if bounded else (low, high)


def _bonett_price(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two paired proportions, or of graded scores on the safe side."""
    n = len(differences)
    gains = (float(differences[differences > 0].sum()) + 1) / (n + 2)
    losses = (1 - float(differences[differences < 0].sum())) / (n + 2)
    half = Z * math.sqrt((gains + losses - (gains - losses) ** 2) / (n + 2))
    return max(-1.0, gains - losses - half), min(1.0, gains - losses + half)
