"""Significance marks: the best entries of a column, and those not significantly worse."""

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
"""Base model and method of a table's row."""


@dataclass(frozen=True, eq=False)
class ColumnEntry:
    """Scores of one row in a column."""

    row: RowKey
    score: float
    """Score as shown in the table, unrounded."""
    scores: NDArray[np.float64]
    """[n], one per example."""
    examples: object
    """Key that is equal for two rows exactly where they have the same examples and metric."""
    higher_is_better: bool = True
    bounded: bool = True
    """Whether scores lie in [0, 1]; False for losses."""


@dataclass(frozen=True)
class RowSignificance:
    """Mark and p-value of a row in a column."""

    mark: Mark
    p: float | None = None
    """Holm-corrected p-value of the paired test against the best; None for the best itself and for untested rows."""


@dataclass(frozen=True)
class ColumnSignificance:
    """Significance of all rows of a column."""

    by_row: dict[RowKey, RowSignificance]
    groups: tuple[tuple[RowKey, ...], ...]
    """Rows that share their examples, in column order; one group where all rows are comparable."""


def column_entry(summary: CellSummary) -> ColumnEntry:
    """Return a cell's scores as an entry of a column."""
    examples = (summary.metric, summary.hashes.tobytes(), summary.scored.tobytes())
    row = (summary.cell.model, summary.cell.method)
    direction, bounded = summary.higher_is_better, summary.percent
    return ColumnEntry(row, summary.score, summary.contributions, examples, direction, bounded)


def compare_rows(column: Iterable[ColumnEntry]) -> ColumnSignificance:
    """Test the rows of a column against the best row with the same examples.

    The best are the rows with the best mean. All others are tested against the first of them by a paired test, with
    Holm correction over the group; at p >= 5 % a row is not significantly worse.
    No row is marked where all have the same mean, or where the best has so few examples, or so few right answers, that
    no row could be significantly worse (:func:`.min_attainable_p`). A row that shares its examples with no other row
    gets no mark, nor does a row with a score that is not finite.
    """
    groups: dict[object, list[ColumnEntry]] = {}
    by_row: dict[RowKey, RowSignificance] = {}
    for entry in column:
        if np.isfinite(entry.scores).all():
            groups.setdefault(entry.examples, []).append(entry)
        else:
            # NaN and infinities cannot be ordered.
            by_row[entry.row] = RowSignificance(Mark.NONE)
    for group in groups.values():
        by_row |= _compare_group(group) if len(group) > 1 else {group[0].row: RowSignificance(Mark.NONE)}
    return ColumnSignificance(by_row, tuple(tuple(entry.row for entry in group) for group in groups.values()))


def _compare_group(group: Sequence[ColumnEntry]) -> dict[RowKey, RowSignificance]:
    sign = 1 if group[0].higher_is_better else -1
    top = max(sign * entry.score for entry in group)
    # Summation order may change the last bits.
    is_top = [math.isclose(sign * entry.score, top, rel_tol=1e-12, abs_tol=1e-12) for entry in group]
    tied = [entry for entry, best in zip(group, is_top, strict=True) if best]
    others = [entry for entry, best in zip(group, is_top, strict=True) if not best]
    if not others:
        return {entry.row: RowSignificance(Mark.NONE) for entry in group}
    # Rows with equal scores (all wrong at eight times the context) are tested once.
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
    by_row = {entry.row: RowSignificance(Mark.BEST) for entry in tied}
    for entry, p in zip(others, adjusted, strict=True):
        # The mean over tokens can be worse where the mean over examples is not; that does not count as worse.
        worse = p < SIGNIFICANCE_LEVEL and sign * float(tied[0].scores.mean() - entry.scores.mean()) > 0
        by_row[entry.row] = RowSignificance(Mark.NONE if worse else Mark.CLOSE, p)
    return by_row
