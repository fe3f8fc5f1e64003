"""Position bias: the slope of the score over the needle's depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.stats.confidence_intervals import safe_variance, too_few_to_resample

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class PositionBias:
    """Slope and worst depth of a cell."""

    slope: float
    """In points (score x 100) from the first token to the last; above 0, needles near the end are found more often."""
    low: float
    high: float
    """95 % interval of the slope."""
    worst_depth: float
    """In percent; the shallowest where several tie."""
    worst_score: float
    """Mean score at that depth, in [0, 1]."""


def fit_position_bias(
    depths: Sequence[float] | NDArray[np.float64], scores: Sequence[float] | NDArray[np.float64]
) -> PositionBias:
    """Fit a line to the scores by depth (least squares) and find the depth with the lowest mean.

    The interval is Student's with HC3 variance (MacKinnon and White 1985; Long and Ervin 2000), since rates near 0 or 1
    vary less than others. Scores that cannot be resampled (:func:`.too_few_to_resample`), or a depth
    with a single example, get the variance of :func:`.safe_variance` for all, which is never 0.

    Args:
        depths: [n], in percent of the context, 0 = start.
        scores: [n], in [0, 1], higher is better.

    Raises:
        UserError: there are fewer than three examples or two depths.
        ValueError: depths and scores differ in shape.
    """
    x, y = np.asarray(depths, dtype=np.float64) / 100, np.asarray(scores, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError(f"depths and scores have the shapes {x.shape} and {y.shape}")
    distinct_depths, depth_index = np.unique(np.asarray(depths, dtype=np.float64), return_inverse=True)
    if len(x) < 3 or len(distinct_depths) < 2:
        raise UserError(
            f"{len(x)} examples at {len(distinct_depths)} depths: a slope needs at least three examples and two depths"
        )
    from scipy.special import stdtrit

    means = np.bincount(depth_index, weights=y) / np.bincount(depth_index)
    centred = x - x.mean()
    sum_squares = float(centred @ centred)
    slope = float(centred @ y) / sum_squares
    half = float(stdtrit(len(x) - 2, 0.975)) * math.sqrt(_variance(centred, y, slope, sum_squares))
    worst = int(np.argmin(means))
    return PositionBias(
        100 * slope, 100 * (slope - half), 100 * (slope + half), float(distinct_depths[worst]), float(means[worst])
    )


def _variance(centred: NDArray[np.float64], y: NDArray[np.float64], slope: float, sum_squares: float) -> float:
    """Return the variance of the slope."""
    one_minus_leverage = 1 - (1 / len(y) + centred**2 / sum_squares)
    if too_few_to_resample(y) or one_minus_leverage.min() < 1e-9:
        return safe_variance(y) / sum_squares
    residuals = (y - y.mean() - slope * centred) / one_minus_leverage
    return float(((centred * residuals) ** 2).sum()) / sum_squares**2
