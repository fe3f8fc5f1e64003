"""Effective length: search, both thresholds, interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import NATURAL
from longctx_bench.reporting.stats.effective_length import RELATIVE_THRESHOLD, RULER_THRESHOLD, effective_length


def rate(successes: int, n: int = 100) -> list[float]:
    scores = [1.0] * successes + [0.0] * (n - successes)
    return np.random.default_rng(successes).permutation(scores).tolist()


def test_the_walk_stops_at_the_first_length_that_fails() -> None:
    scores = {2048: rate(50), 512: rate(99), 4096: rate(97), 1024: rate(95)}
    found = effective_length(scores, RULER_THRESHOLD)
    assert (found.length, found.low, found.high) == (1024, 1024, 1024)
    assert found.threshold == 0.856


def test_a_threshold_relative_to_the_own_score() -> None:
    scores = {512: rate(60), 1024: rate(58), 2048: rate(20)}
    assert effective_length(scores, RULER_THRESHOLD).length is None
    found = effective_length(scores, RELATIVE_THRESHOLD, relative_to=512)
    assert (found.length, found.low, found.high) == (1024, 512, 1024)
    assert found.threshold == pytest.approx(0.51)


def test_the_threshold_itself_is_held() -> None:
    assert effective_length({512: rate(20, 20), 1024: rate(17, 20)}, 0.85, relative_to=512).length == 1024
    # 34 of 53 are 85 % of 40 of 53, though the two numbers differ in their last digit.
    assert 34 / 53 < 0.85 * (40 / 53)
    assert effective_length({512: rate(40, 53), 1024: rate(34, 53)}, 0.85, relative_to=512).length == 1024
    assert effective_length({512: rate(17, 20)}, 0.85).length == 512
    assert effective_length({512: rate(16, 20)}, 0.85).length is None


def test_a_model_that_finds_nothing_has_no_effective_length() -> None:
    found = effective_length({512: rate(0), 1024: rate(0)}, 0.85, relative_to=512)
    assert (found.length, found.low, found.high, found.threshold) == (None, None, None, 0)
    absolute = effective_length({512: rate(0), 1024: rate(90)}, RULER_THRESHOLD)
    assert (absolute.length, absolute.low, absolute.high) == (None, None, None)


@pytest.mark.parametrize("n", [5, 8, 10, 15, 30])
def test_few_hits_of_as_many_are_no_certainty(n: int) -> None:
    found = effective_length({512: rate(n, n)}, RULER_THRESHOLD)
    doubt = stats.beta.cdf(RULER_THRESHOLD, n + 0.5, 0.5)
    assert found.length == 512
    assert found.low == (None if doubt > 0.025 else 512)


def test_the_interval_is_the_bootstraps_over_the_walk() -> None:
    rng = np.random.default_rng(1)
    cells = {512 * 2**place: rng.beta(9, 9 / mean - 9, 60) for place, mean in enumerate((0.9, 0.87, 0.84, 0.7))}
    found = effective_length(cells, 0.84)
    draws = np.stack([rng.choice(scores, (20_000, 60)).mean(axis=1) for scores in cells.values()])
    reached = np.cumprod(draws >= 0.84, axis=0).sum(axis=0)
    names = [None, *cells]
    expected = [names[int(q)] for q in np.quantile(reached, (0.025, 0.975), method="inverted_cdf")]
    assert [found.low, found.high] == expected
    assert found.low != found.high


@pytest.mark.slow
def test_the_interval_covers_the_true_length() -> None:
    rng = np.random.default_rng(2)
    rates = {512: 0.97, 1024: 0.92, 2048: 0.88, 4096: 0.6}
    held = 0
    for _ in range(1_000):
        cells = {length: (rng.random(100) < share).astype(float) for length, share in rates.items()}
        found = effective_length(cells, RULER_THRESHOLD)
        held += (found.low or 0) <= 2048 <= (found.high or 0)
    assert held >= 930


def test_many_examples_need_no_large_memory_and_agree() -> None:
    rng = np.random.default_rng(3)
    means = {512: 0.9, 1024: 0.857, 2048: 0.5}
    cells = {length: rng.beta(9, 9 / mean - 9, 5_000) for length, mean in means.items()}
    found = effective_length(cells, RULER_THRESHOLD)
    assert (found.low, found.high) == (512, 1024)


def test_what_was_not_measured_is_said() -> None:
    with pytest.raises(UserError, match="256 tokens.*85%.*measured: 512"):
        effective_length({512: rate(9, 10)}, 0.85, relative_to=256)
    with pytest.raises(UserError, match="no cell of a fixed length"):
        effective_length({NATURAL: rate(9, 10), 512: []}, 0.85)
