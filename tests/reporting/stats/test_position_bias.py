"""Position bias against statsmodels, and its coverage."""

from __future__ import annotations

import numpy as np
import pytest

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.stats.position_bias import fit_position_bias

DEPTHS = np.tile(np.arange(0, 101, 10), 6)


def test_slope_and_interval_are_statsmodels() -> None:
    scores = np.array([0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0] * 6, dtype=float)
    found = fit_position_bias(DEPTHS, scores)
    # statsmodels 0.15.0: OLS(scores, add_constant(depths / 100)).fit(cov_type="HC3", use_t=True)
    assert found.slope == pytest.approx(-18.181818181818205)
    assert (found.low, found.high) == pytest.approx((-54.18249185978434, 17.81885549614794))
    assert (found.worst_depth, found.worst_score) == (0, 0)


def test_the_worst_depth_has_the_lowest_mean() -> None:
    scores = np.where(DEPTHS == 70, 0.25, 0.9)
    scores[0] = 0.0  # one failure at depth 0 makes no worst depth
    found = fit_position_bias(DEPTHS, scores)
    assert (found.worst_depth, found.worst_score) == (70, 0.25)


def test_a_straight_line_has_its_slope() -> None:
    found = fit_position_bias(DEPTHS, 0.9 - 0.4 * DEPTHS / 100)
    assert (found.slope, found.low, found.high) == pytest.approx((-40, -40, -40))


def test_equal_scores_leave_room_for_a_slope() -> None:
    few, many = fit_position_bias(DEPTHS[:22], np.ones(22)), fit_position_bias(DEPTHS, np.ones(66))
    rate = 68 / 70
    half = 100 * 1.99773 * np.sqrt(rate * (1 - rate) / (0.1 * 66))  # the depths' variance is 0.1
    assert (many.slope, many.low, many.high) == pytest.approx((0, -half, half), abs=1e-3)
    assert few.high > many.high


def test_a_depth_with_one_example_breaks_nothing() -> None:
    found = fit_position_bias([0.0] * 30 + [100.0], [*np.linspace(0, 1, 30), 0.9])
    assert np.isfinite([found.slope, found.low, found.high]).all()
    assert found.slope == pytest.approx(40)


def test_the_interval_holds_its_level() -> None:
    rng = np.random.default_rng(1)
    depths = np.tile(DEPTHS, 3)
    cells = (rng.random((2_000, len(depths))) < 0.95 - 0.3 * depths / 100).astype(float)
    found = [fit_position_bias(depths, cell) for cell in cells]
    assert 0.93 < np.mean([f.low <= -30 <= f.high for f in found]) < 0.97


@pytest.mark.parametrize(("depths", "scores"), [([50.0] * 5, [1.0] * 5), ([0.0, 100.0], [1.0, 0.0]), ([], [])])
def test_too_little_for_a_slope_is_refused(depths: list[float], scores: list[float]) -> None:
    with pytest.raises(UserError, match="three examples and two depths"):
        fit_position_bias(depths, scores)


def test_depths_must_belong_to_scores() -> None:
    with pytest.raises(ValueError, match="shapes"):
        fit_position_bias([0.0, 1.0, 2.0], [1.0])
