"""Intervals against scipy, closed forms, and 2,000 simulated cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from longctx_bench.reporting.stats.confidence_intervals import (
    bca_interval,
    mean_interval,
    too_few_to_resample,
    wilson_interval,
)

Scores = NDArray[np.float64]


def graded(rng: np.random.Generator, *shape: int) -> tuple[Scores, float]:
    """Scores as LongBench's metrics give them: a third nothing, a few right to the letter, the rest in between."""
    kind, between = rng.random(shape), rng.beta(2, 4, shape)
    return np.where(kind < 0.3, 0.0, np.where(kind > 0.9, 1.0, between)), 0.1 + 0.6 * 2 / 6


def low_graded(rng: np.random.Generator, *shape: int) -> tuple[Scores, float]:
    """A model that mostly fails."""
    return np.where(rng.random(shape) < 0.6, 0.0, rng.beta(1, 3, shape)), 0.4 / 4


def overlap(rng: np.random.Generator, *shape: int) -> tuple[Scores, float]:
    """ROUGE of summaries: all in between."""
    return rng.beta(2, 5, shape), 2 / 7


def covered(intervals: list[tuple[float, float]], truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


@pytest.mark.parametrize("successes", [0, 1, 7, 50, 99, 100])
def test_wilson_is_scipys(successes: int) -> None:
    expected = stats.binomtest(successes, 100).proportion_ci(method="wilson")
    assert wilson_interval(successes, 100) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_without_examples_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0, 1)
    assert mean_interval([]) == (0, 1)


@pytest.mark.slow
def test_wilson_holds_its_level_over_rates_and_sizes() -> None:
    rng = np.random.default_rng(1)
    shares = []
    for n in (22, 44, 100, 198):
        for rate in (0.05, 0.2, 0.5, 0.77, 0.9):
            cells = (rng.random((2_000, n)) < rate).astype(float)
            shares.append(covered([mean_interval(cell) for cell in cells], rate))
    assert 0.93 < np.mean(shares) < 0.97
    assert min(shares) > 0.9


@pytest.mark.parametrize("draw", [graded, low_graded, overlap])
def test_graded_scores_hold_their_level(draw) -> None:  # type: ignore[no-untyped-def]
    cells, truth = draw(np.random.default_rng(2), 2_000, 100)
    assert not any(too_few_to_resample(cell) for cell in cells)  # the bootstrap is what is tested
    assert 0.93 < covered([mean_interval(cell) for cell in cells], truth) < 0.97


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 1_500])
def test_the_bootstrap_is_scipys(n: int) -> None:
    scores, _ = low_graded(np.random.default_rng(3), n)
    if n > 1_000:
        scores[40:] = 0  # so few successes that the closed form needs its skewness
    expected = stats.bootstrap(
        (scores,), np.mean, n_resamples=40_000, batch=1_000, method="BCa", rng=np.random.default_rng(4)
    ).confidence_interval
    low, high = bca_interval(scores)
    width = expected.high - expected.low
    # Ends drawn by chance, ours from 4,000 samples: 2 % of the width is what two such draws differ by.
    assert low == pytest.approx(expected.low, abs=0.04 * width)
    assert high == pytest.approx(expected.high, abs=0.04 * width)
    mean = scores.mean()
    assert high - mean > 1.05 * (mean - low)  # skewed to the right
    assert mean_interval(scores) == (low, high)


def test_many_examples_have_the_closed_forms_interval() -> None:
    scores, _ = graded(np.random.default_rng(5), 4_000)
    half = 1.959964 * scores.std() / math.sqrt(len(scores))
    assert bca_interval(scores) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.03 * half)


def test_samples_with_the_very_mean_count_half_on_either_side() -> None:
    # Twelve of 24 are 0.5, the others symmetric: without the ties the bias would shift both ends.
    scores = np.array([0.5] * 12 + [0.3, 0.7] * 6)
    low, high = bca_interval(scores)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.004)


def test_the_same_scores_have_the_same_interval() -> None:
    scores, _ = graded(np.random.default_rng(6), 100)
    assert mean_interval(scores) == mean_interval(list(scores))


@pytest.mark.parametrize(
    "scores", [[0.4] * 5, [0.5] * 200, [0.25] * 195 + [0.75] * 5, [0.1, 0.2, 0.6], [0.1, 0.5] * 9], ids=str
)
def test_scores_too_few_or_too_equal_get_wilsons_interval(scores: list[float]) -> None:
    low, high = mean_interval(scores)
    assert (low, high) == pytest.approx(wilson_interval(sum(scores), len(scores)))
    assert low < np.mean(scores) < high


def test_few_differ_counts_from_the_commonest_score() -> None:
    rng = np.random.default_rng(7)
    seen = set()
    for _ in range(2_000):
        n = int(rng.integers(1, 45))
        values = rng.integers(0, rng.integers(1, 7), n) / 4
        counts = np.unique(values, return_counts=True)[1]
        assert too_few_to_resample(values) == (n < 20 or n - counts.max() < 10)
        seen.add(too_few_to_resample(values))
    assert seen == {True, False}


def test_losses_get_students_interval() -> None:
    losses = np.random.default_rng(8).normal(3, 0.5, 20)
    expected = stats.ttest_1samp(losses, 0).confidence_interval()
    assert mean_interval(losses, bounded=False) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("losses", [[], [2.0], [2.0, 2.0, 2.0]], ids=str)
def test_losses_without_a_spread_have_no_end(losses: list[float]) -> None:
    assert mean_interval(losses, bounded=False) == (-math.inf, math.inf)
