"""Effective context length: how far a model's score holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import NATURAL, length_name
from longctx_bench.reporting.stats.confidence_intervals import too_few_to_resample
from longctx_bench.reporting.stats.resampling import RESAMPLES, SEED, bootstrap_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

RELATIVE_THRESHOLD = 0.85
"""Threshold relative to the model's own score at its training context."""
RULER_THRESHOLD = 0.856
"""RULER's absolute one: the score of Llama 2 7B at 4,096 tokens (arXiv 2404.06654, Table 3)."""
_DRAWN = 2_000
"""Up to so many examples are resampled; means of more are drawn from their normal distribution."""


@dataclass(frozen=True)
class EffectiveLength:
    """The longest length up to which a score stays at or above a threshold."""

    length: int | None
    """In tokens; None where even the shortest fails. The longest that was measured: at least so long."""
    low: int | None
    high: int | None
    """95 % interval, of lengths that were measured; None is below the shortest."""
    threshold: float
    """In the scores' unit, [0, 1]."""


def effective_length(
    scores_by_length: Mapping[int, Sequence[float] | NDArray[np.float64]],
    threshold: float,
    relative_to: int | None = None,
) -> EffectiveLength:
    """Walk up from the shortest length while the mean score holds a threshold; stop at the first length that fails.

    The interval is the percentile bootstrap's over the examples, of the whole walk; examples of the same place in
    their cells are drawn together. A threshold relative to an own score is drawn anew with that score. Cells whose
    scores are too few or too equal to resample (:func:`.too_few_to_resample`) draw their mean from
    Beta(s + 1/2, n - s + 1/2) with s the sum of their scores (Jeffreys' posterior of a rate): 22 hits of 22 are no
    certainty.

    Args:
        scores_by_length: scores in [0, 1], higher is better, by length in tokens; whole documents (length 0) are left
            out.
        threshold: the score to hold, or with ``relative_to`` the share of the score at that length.
        relative_to: the length whose mean score the threshold is a share of, such as the training context. No length
            holds a share of 0.

    Raises:
        UserError: no length was measured, or not the one that the threshold is relative to.
    """
    lengths = sorted(length for length, scores in scores_by_length.items() if length != NATURAL and len(scores))
    if not lengths:
        raise UserError("no cell of a fixed length to find an effective length in; run the task with --scale 1x,2x,4x")
    if relative_to is not None and relative_to not in lengths:
        known = ", ".join(map(length_name, lengths))
        raise UserError(f"no score at {relative_to} tokens to take {threshold:.0%} of; measured: {known}")
    values = [np.asarray(scores_by_length[length], dtype=np.float64) for length in lengths]
    means = np.array([[scores.mean()] for scores in values])
    drawn = np.stack([_drawn_means(scores, length) for scores, length in zip(values, lengths, strict=True)])
    place = None if relative_to is None else lengths.index(relative_to)
    needed = _needed(means, threshold, place)
    if needed[0] <= 0:
        return EffectiveLength(None, None, None, float(needed[0]))
    reached = int(_held(means, needed)[0])
    low, high = np.quantile(_held(drawn, _needed(drawn, threshold, place)), (0.025, 0.975), method="inverted_cdf")
    names: list[int | None] = [None, *lengths]
    return EffectiveLength(
        names[reached], names[min(int(low), reached)], names[max(int(high), reached)], float(needed[0])
    )


def _needed(means: NDArray[np.float64], threshold: float, place: int | None) -> NDArray[np.float64]:
    """Return the absolute threshold of each draw, [B]; ``means`` are [lengths, B]."""
    return np.full(means.shape[1], threshold) if place is None else threshold * means[place]


def _held(means: NDArray[np.float64], needed: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return how many lengths, from the shortest, hold the threshold in each draw, [B]."""
    # 0.85 of 1.0 and 17 of 20 are one number to a reader, if not always to the last bit.
    held: NDArray[np.intp] = np.logical_and.accumulate(means >= needed - 1e-9, axis=0).sum(axis=0)
    return held


def _drawn_means(scores: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Return bootstrap means of one cell, [RESAMPLES]."""
    n, total = len(scores), float(scores.sum())
    rng = np.random.default_rng((SEED, length))
    if too_few_to_resample(scores):
        return rng.beta(total + 0.5, n - total + 0.5, RESAMPLES)
    if n > _DRAWN:
        return rng.normal(total / n, scores.std() / np.sqrt(n), RESAMPLES)
    return (scores.astype(np.float32) @ bootstrap_weights(n)).astype(np.float64)
