"""Paired tests and intervals against scipy, statsmodels, closed forms, and 2,000 simulated cells."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from longctx_bench.reporting.stats.paired_tests import (
    MCNEMAR,
    MIN_DIFFERING_PAIRS,
    PERMUTATION,
    PERMUTATION_EXACT,
    SIGNIFICANCE_LEVEL,
    holm_correction,
    min_detectable_difference,
    paired_comparison,
    paired_test,
)
from longctx_bench.reporting.stats.resampling import SIGN_FLIPS, sign_flip_sums


def pairs_of(gains: int, losses: int, ties: int) -> tuple[list[float], list[float]]:
    return [1.0] * gains + [0.0] * losses + [1.0] * ties, [0.0] * gains + [1.0] * losses + [1.0] * ties


# statsmodels 0.15.0, mcnemar([[50, gains], [losses, 60]], exact=True).pvalue
@pytest.mark.parametrize(
    ("gains", "losses", "p"),
    [
        (46, 0, 2.842170943040401e-14),
        (26, 32, 0.5118423084381691),
        (1, 180, 1.1876054131757315e-52),
        (5, 15, 0.04138946533203125),
        (10, 20, 0.09873714670538905),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_is_statsmodels(gains: int, losses: int, p: float) -> None:
    found = paired_comparison(*pairs_of(gains, losses, 50))
    assert found.test == MCNEMAR
    assert found.p == pytest.approx(p)
    assert (found.wins, found.ties, found.losses) == (gains, 50, losses)
    assert found.n == gains + losses + 50


def test_the_false_positive_rate_of_mcnemar() -> None:
    # The exact test cannot reach 5 % with few pairs that differ; here some 5,000 do, and its own level is 4.8 %.
    rng = np.random.default_rng(1)
    found = [paired_test(*(rng.integers(0, 2, (2, 10_000)).astype(float))) for _ in range(2_000)]
    assert {test for test, _ in found} == {MCNEMAR}
    assert 0.04 < np.mean([p <= 0.05 for _, p in found]) < 0.06


def test_mcnemar_never_finds_too_much_where_few_pairs_differ() -> None:
    rng = np.random.default_rng(2)
    cells = (rng.random((2_000, 2, 100)) < 0.1).astype(float)
    assert np.mean([paired_test(*cell)[1] <= 0.05 for cell in cells]) < 0.05


@pytest.mark.parametrize("bounded", [True, False])
def test_the_false_positive_rate_of_the_permutation_test(bounded: bool) -> None:
    rng = np.random.default_rng(3)
    scores = np.where(rng.random((2_000, 2, 100)) < 0.3, 0, rng.beta(2, 4, (2_000, 2, 100)))
    found = [paired_test(*cell, bounded) for cell in scores]
    assert {test for test, _ in found} == {PERMUTATION}
    assert 0.04 < np.mean([p <= 0.05 for _, p in found]) < 0.06


def test_the_exact_permutation_test_is_scipys() -> None:
    rng = np.random.default_rng(4)
    for n in (2, 5, 12):
        a, b = rng.random(n), rng.random(n)
        ties = rng.random(7)
        found = paired_comparison(np.concatenate((a, ties)), np.concatenate((b, ties)))
        expected = stats.permutation_test(
            (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", n_resamples=np.inf
        )
        assert found.test == PERMUTATION_EXACT
        assert found.p == pytest.approx(expected.pvalue)


def test_equal_sums_count_whatever_their_last_digits() -> None:
    # All 8 differences are 0.1, so only all plus and all minus reach the observed sum.
    a = np.array([0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert paired_comparison(a, a - 0.1).p == 2 / 2**8
    # Tenths and whole numbers are one test; summed one by one, tenths miss the observed sum by a last digit.
    few = np.array([5, 2, -3, -2, -6, -6, -6, -4, 4, 2, 5])
    many = np.concatenate((few, [1, 6, 3, 2, 1, 1, 6, -3, 4, 2, -6, -1, 5, 1, -6, 3, 3, 5, -4, -5, 5, -6, 1, -5]))
    for whole in (few, many):
        zeros = np.zeros(len(whole))
        assert paired_comparison(whole / 10, zeros, bounded=False).p == paired_comparison(whole, zeros, bounded=False).p
    # Thirds, drawn: of 14 equal differences only the two extreme vectors of 16,384 reach the sum.
    found = paired_comparison([2 / 3] * 14 + [0.2] * 86, [1 / 3] * 14 + [0.2] * 86)
    assert found.test == PERMUTATION
    assert found.p <= 0.0005


def test_the_drawn_permutation_test_is_near_the_exact_one() -> None:
    # Differences of +-1 have a binomial sum, and so an exact p.
    for gains, losses in ((60, 40), (30, 45), (12, 8), (150, 110)):
        a, b = (0.5 + 0.5 * np.array(scores) for scores in pairs_of(gains, losses, 5))
        found = paired_comparison(a, b)
        exact = stats.binomtest(gains, gains + losses).pvalue
        assert found.test == PERMUTATION
        assert found.p == pytest.approx(exact, abs=4.5 * math.sqrt(exact * (1 - exact) / SIGN_FLIPS))


def test_sign_flips_are_random_and_hold_the_observed_signs() -> None:
    values = np.random.default_rng(5).random(700)  # more than one block of stored signs
    sums = sign_flip_sums(values)
    assert sums.shape == (SIGN_FLIPS,)
    assert sums[0] == pytest.approx(values.sum(), rel=1e-5)
    # All but the observed signs and the seven that turn whole quarters of them.
    standard = sums.reshape(8, -1)[:, 1:].ravel().astype(float) / math.sqrt((values**2).sum())
    assert standard.mean() == pytest.approx(0, abs=0.04)
    assert standard.std() == pytest.approx(1, abs=0.03)
    assert stats.kstest(standard, "norm").statistic < 0.02


def test_a_clear_difference_is_found() -> None:
    rng = np.random.default_rng(6)
    b = rng.beta(2, 4, 100) * 0.8
    found = paired_comparison(b + 0.05 + 0.1 * rng.random(100), b)
    assert found.p == 1 / SIGN_FLIPS
    assert 0.05 < found.low < found.difference < found.high < 0.15
    assert found.difference == pytest.approx(found.mean_a - found.mean_b)


def test_the_same_scores_give_the_same_answer() -> None:
    a, b = np.random.default_rng(7).random((2, 100))
    assert paired_comparison(a, b) == paired_comparison(list(a), list(b))
    mirrored = paired_comparison(b, a)
    assert mirrored.p == paired_comparison(a, b).p
    assert (mirrored.wins, mirrored.losses) == (paired_comparison(a, b).losses, paired_comparison(a, b).wins)


def test_lower_losses_win() -> None:
    a, b = [2.0, 2.5, 3.0, 1.0], [2.5, 2.0, 3.5, 1.0]
    found = paired_comparison(a, b, bounded=False, higher_is_better=False)
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert found.difference == -0.125
    expected = stats.ttest_rel(a, b).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_rates_have_bonett_and_prices_interval() -> None:
    # 20 gains, 5 losses of 100: shares 21 / 102 and 6 / 102.
    found = paired_comparison(*pairs_of(20, 5, 75))
    half = 1.959964 * math.sqrt((27 / 102 - (15 / 102) ** 2) / 102)
    assert (found.low, found.high) == pytest.approx((15 / 102 - half, 15 / 102 + half), abs=1e-6)


@pytest.mark.parametrize(("gains", "losses", "ties"), [(0, 0, 1), (0, 0, 198), (22, 0, 0), (0, 5, 0), (1, 0, 0)])
def test_the_interval_of_rates_behaves_at_the_ends(gains: int, losses: int, ties: int) -> None:
    found = paired_comparison(*pairs_of(gains, losses, ties))
    assert -1 <= found.low <= found.difference <= found.high <= 1
    assert found.low < found.high


@pytest.mark.slow
def test_the_interval_of_rates_holds_its_level() -> None:
    rng = np.random.default_rng(8)
    shares = []
    for n in (44, 100, 198):
        for gains, losses in ((0.05, 0.05), (0.2, 0.05), (0.3, 0.3), (0.75, 0.02)):
            kind = rng.random((2_000, n))
            a = (kind < gains).astype(float)
            b = (kind > 1 - losses).astype(float)
            found = [paired_comparison(*cell) for cell in zip(a, b, strict=True)]
            shares.append(np.mean([f.low <= gains - losses <= f.high for f in found]))
    assert 0.93 < np.mean(shares) < 0.97
    assert min(shares) > 0.92


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 30, 44, 100])
def test_the_interval_of_graded_differences_holds_its_level(n: int) -> None:
    rng = np.random.default_rng(9)
    hard = rng.random((2_000, n))
    a = hard * rng.beta(4, 2, hard.shape)
    b = hard * np.where(rng.random(hard.shape) < 0.4, 0, rng.beta(2, 2, hard.shape))
    found = [paired_comparison(*cell) for cell in zip(a, b, strict=True)]
    truth = 0.5 * (4 / 6 - 0.6 * 0.5)
    assert 0.93 < np.mean([f.low <= truth <= f.high for f in found]) < 0.97


def test_graded_differences_too_few_to_resample_are_on_the_safe_side() -> None:
    a, b = np.full(100, 0.3), np.full(100, 0.3)
    same = paired_comparison(a, b)
    assert (same.low, same.high) == pytest.approx((-0.0272, 0.0272), abs=1e-4)  # as 100 ties of rates
    assert (same.p, same.test) == (1, PERMUTATION_EXACT)
    a[:3] += 0.5
    found = paired_comparison(a, b)
    assert found.p == 0.25
    # Gains of 1.5 and losses of 0.
    half = 1.959964 * math.sqrt((3.5 / 102 - (1.5 / 102) ** 2) / 102)
    assert (found.low, found.high) == pytest.approx((1.5 / 102 - half, 1.5 / 102 + half), abs=1e-6)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 0.0]), ([[1.0]], [[1.0]])])
def test_what_cannot_be_paired_is_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="shapes"):
        paired_comparison(a, b)


def test_a_score_that_is_no_number_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="finite"):
        paired_comparison([float("nan"), 1.0], [0.0, 1.0])


def test_holm_is_statsmodels() -> None:
    # statsmodels 0.15.0, multipletests(p, method="holm")[1]
    assert holm_correction([0.01, 0.04, 0.03, 0.005, 0.5, 0.03]) == pytest.approx([0.05, 0.12, 0.12, 0.03, 0.5, 0.12])
    assert holm_correction([0.9, 0.8]) == [1.0, 1.0]
    assert holm_correction([]) == []


@pytest.mark.parametrize("n", [6, 7, 22, 198])
def test_the_detectable_difference_is_the_first_that_mcnemar_finds(n: int) -> None:
    needed = min_detectable_difference([1.0] * n) * n
    assert needed == pytest.approx(MIN_DIFFERING_PAIRS)
    wins = round(needed)
    assert (
        paired_comparison(*pairs_of(wins, 0, n - wins)).p
        < SIGNIFICANCE_LEVEL
        <= paired_comparison(*pairs_of(wins - 1, 0, n - wins + 1)).p
    )
    assert min_detectable_difference([0.0] * n) == min_detectable_difference([1.0] * n)


@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize("bounded", [True, False])
def test_no_difference_is_detectable_in_fewer_than_six_examples(n: int, bounded: bool) -> None:
    assert min_detectable_difference([0.1 * place for place in range(n)], bounded) == math.inf
    assert min_detectable_difference([1.0] * n, bounded) == math.inf
    if n:
        assert paired_comparison([1.0] * n, [0.0] * n, bounded).p >= SIGNIFICANCE_LEVEL


@pytest.mark.parametrize("n", [12, 50, 400])
def test_the_detectable_difference_of_graded_scores_is_where_the_permutation_test_turns(n: int) -> None:
    rng = np.random.default_rng(n)
    ratios = []
    for _ in range(20):
        # Two methods that have only the spread in common; moved apart by less and by more than the difference.
        left, right = rng.normal(3, 0.5, (2, n))
        right += left.mean() - right.mean()
        both = np.concatenate((left, right)) - 3
        needed = min_detectable_difference(left * both.std(ddof=1) / left.std(ddof=1), bounded=False)
        moved = [
            shift
            for shift in np.linspace(0.5, 1.5, 41)
            if paired_comparison(left + shift * needed, right, False).p < SIGNIFICANCE_LEVEL
        ]
        ratios.append(moved[0])
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)


def test_what_has_no_spread_or_is_no_number_shows_nothing() -> None:
    assert min_detectable_difference([2.0] * 20, bounded=False) == math.inf
    assert min_detectable_difference([math.nan] * 20) == math.inf
