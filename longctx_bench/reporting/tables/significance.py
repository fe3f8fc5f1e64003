"""Which entries of a column are the best, and which are not significantly worse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.stats.paired_tests import (
    SIGNIFICANCE_LEVEL,
    holm_correction,
    min_attainable_p,
    paired_test,
)
from longctx_bench.reporting.tables.base import Mark

RowKey = tuple[str, str]
"""Model and method: what a row of a table is about."""


@dataclass(frozen=True, eq=False)
class ColumnEntry:
    """What one row has to show in a column."""

    row: RowKey
    score: float
    """As the table shows it."""
    scores: NDArray[np.float64]
    """[n]: each example's."""
    examples: object
    """Equal for two rows exactly where they were given the same examples, scored by the same metric."""
    higher_is_better: bool = True
    bounded: bool = True
    """Whether scores lie in [0, 1]; losses do not."""


@dataclass(frozen=True)
class RowSignificance:
    """What a column's comparison says of a row."""

    mark: Mark
    p: float | None = None
    """Of the paired test against the best, adjusted by Holm; None for the best itself and what has no partner."""


@dataclass(frozen=True)
class ColumnSignificance:
    """One column's comparison."""

    by_row: dict[RowKey, RowSignificance]
    groups: tuple[tuple[RowKey, ...], ...]
    """The rows that share their examples, in the column's order; one group where all can be compared."""


def column_entry(summary: CellSummary) -> ColumnEntry:
    """Return a cell as a competitor."""
    examples = (summary.metric, summary.hashes.tobytes(), summary.scored.tobytes())
    row = (summary.cell.model, summary.cell.method)
    direction, bounded = summary.higher_is_better, summary.percent
    return ColumnEntry(row, summary.score, summary.contributions, examples, direction, bounded)


def compare_rows(column: Iterable[ColumnEntry]) -> ColumnSignificance:
    """Compare the rows of a column with the best of those that were given the same examples.

    The best are those with the best mean. Every other row is tested against the first of them, pair by pair of
    examples, the p values adjusted by Holm's procedure over the group; above 5 % a row is not significantly worse.
    No row is marked where all have the same mean, or where the best has so few examples, or so few right answers, that
    no row could be significantly worse (:func:`.min_attainable_p`). A row that shares its examples with no other row
    gets no mark, nor does a row with a score that is not finite.
    """
    groups: dict[object, list[ColumnEntry]] = {}
    found: dict[RowKey, RowSignificance] = {}
    for entry in column:
        if np.isfinite(entry.scores).all():
            groups.setdefault(entry.examples, []).append(entry)
        else:
            # What is no number has no place in an order.
            found[entry.row] = RowSignificance(Mark.NONE)
    for group in groups.values():
        found |= _within(group) if len(group) > 1 else {group[0].row: RowSignificance(Mark.NONE)}
    return ColumnSignificance(found, tuple(tuple(entry.row for entry in group) for group in groups.values()))


def _within(group: Sequence[ColumnEntry]) -> dict[RowKey, RowSignificance]:
    sign = 1 if group[0].higher_is_better else -1
    top = max(sign * entry.score for entry in group)
    # Sums in another order may differ in their last bits.
    places = [math.isclose(sign * entry.score, top, rel_tol=1e-12, abs_tol=1e-12) for entry in group]
    tied = [entry for entry, is_best in zip(group, places, strict=True) if is_best]
    others = [entry for entry, is_best in zip(group, places, strict=True) if not is_best]
    if not others:
        return {entry.row: RowSignificance(Mark.NONE) for entry in group}
    # Rows that answer alike (all wrong at eight times the context) are tested once.
    distinct = {entry.scores.tobytes(): entry.scores for entry in others}
    tests = {key: paired_test(tied[0].scores, scores, group[0].bounded) for key, scores in distinct.items()}
    adjusted = holm_correction([tests[entry.scores.tobytes()][1] for entry in others])
    # Holm multiplies the smallest p by the number of tests.
    if (
        len(others) * min_attainable_p(tied[0].scores, group[0].bounded, group[0].higher_is_better)
        >= SIGNIFICANCE_LEVEL
    ):
        unmarked = {entry.row: RowSignificance(Mark.NONE, p) for entry, p in zip(others, adjusted, strict=True)}
        return {entry.row: unmarked.get(entry.row, RowSignificance(Mark.NONE)) for entry in group}
    found = {entry.row: RowSignificance(Mark.BEST) for entry in tied}
    for entry, p in zip(others, adjusted, strict=True):
        # A mean over tokens can be worse where the mean over examples is not: that is no sign of being worse.
        worse = p < SIGNIFICANCE_LEVEL and sign * float(tied[0].scores.mean() - entry.scores.mean()) > 0
        found[entry.row] = RowSignificance(Mark.NONE if worse else Mark.CLOSE, p)
    return found
