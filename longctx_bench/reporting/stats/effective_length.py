"""Effective context length: the longest length at which the score stays above a threshold."""

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
"""Threshold as a share of the model's own score at its training context."""
RULER_THRESHOLD = 0.856
"""RULER's absolute threshold: the score of Llama 2 7B at 4,096 tokens (arXiv 2404.06654, Table 3)."""
_MAX_BOOTSTRAP_EXAMPLES = 2_000
"""Above this size, means are drawn from their normal approximation."""


@dataclass(frozen=True)
class EffectiveLength:
    """The longest length up to which a score stays at or above a threshold."""

    length: int | None
    """In tokens; None where even the shortest length fails. The longest measured length is a lower bound."""
    low: int | None
    high: int | None
    """95 % interval over measured lengths; None means below the shortest."""
    threshold: float
    """Absolute threshold, in [0, 1]."""


def effective_length(
    scores_by_length: Mapping[int, Sequence[float] | NDArray[np.float64]],
    threshold: float,
    relative_to: int | None = None,
) -> EffectiveLength:
    """Return the longest length up to which every mean score reaches the threshold.

    The interval is a percentile bootstrap over examples of the whole search; examples with the same index in their
    cells are drawn together. A relative threshold is resampled with the score that it refers to. Cells with too few
    distinct scores to resample (:func:`.too_few_to_resample`) draw their mean from
    Beta(s + 1/2, n - s + 1/2) with s the sum of their scores (Jeffreys' posterior of a rate), so that
    22 hits of 22 still have an interval.

    Args:
        scores_by_length: scores in [0, 1], higher is better, by length in tokens; whole documents (length 0) are
            ignored.
        threshold: minimum score, or with ``relative_to`` a share of the mean score at that length.
        relative_to: length in tokens that the threshold refers to, such as the training context. Where the score there
            is 0, no length reaches the threshold.

    Raises:
        UserError: no length was measured, or none at ``relative_to``.
    """
    lengths = sorted(length for length, scores in scores_by_length.items() if length != NATURAL and len(scores))
    if not lengths:
        raise UserError("no cell of a fixed length to find an effective length in; run the task with --scale 1x,2x,4x")
    if relative_to is not None and relative_to not in lengths:
        measured = ", ".join(map(length_name, lengths))
        raise UserError(
            f"no score at {relative_to} tokens, which the threshold of {threshold:.0%} refers to; measured: {measured}"
        )
    values = [np.asarray(scores_by_length[length], dtype=np.float64) for length in lengths]
    means = np.array([[scores.mean()] for scores in values])
    resampled = np.stack([_resampled_means(scores, length) for scores, length in zip(values, lengths, strict=True)])
    reference = None if relative_to is None else lengths.index(relative_to)
    thresholds = _absolute_thresholds(means, threshold, reference)
    if thresholds[0] <= 0:
        return EffectiveLength(None, None, None, float(thresholds[0]))
    num_reached = int(_num_lengths_reached(means, thresholds)[0])
    counts = _num_lengths_reached(resampled, _absolute_thresholds(resampled, threshold, reference))
    low, high = np.quantile(counts, (0.025, 0.975), method="inverted_cdf")
    by_count: list[int | None] = [None, *lengths]
    return EffectiveLength(
        by_count[num_reached],
        by_count[min(int(low), num_reached)],
        by_count[max(int(high), num_reached)],
        float(thresholds[0]),
    )


def _absolute_thresholds(means: NDArray[np.float64], threshold: float, reference: int | None) -> NDArray[np.float64]:
    """Return the absolute threshold of each bootstrap sample, [B]; ``means`` are [lengths, B]."""
    return np.full(means.shape[1], threshold) if reference is None else threshold * means[reference]


def _num_lengths_reached(means: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return how many lengths, counted from the shortest, reach the threshold in each bootstrap sample, [B]."""
    # 0.85 * 1.0 and 17 / 20 must compare as equal.
    counts: NDArray[np.intp] = np.logical_and.accumulate(means >= thresholds - 1e-9, axis=0).sum(axis=0)
    return counts


def _resampled_means(scores: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """Return the bootstrap means of one cell, [RESAMPLES]."""
    n, total = len(scores), float(scores.sum())
    rng = np.random.default_rng((SEED, length))
    if too_few_to_resample(scores):
        return rng.beta(total + 0.5, n - total + 0.5, RESAMPLES)
    if n > _MAX_BOOTSTRAP_EXAMPLES:
        return rng.normal(total / n, scores.std() / np.sqrt(n), RESAMPLES)
    return (scores.astype(np.float32) @ bootstrap_weights(n)).astype(np.float64)
