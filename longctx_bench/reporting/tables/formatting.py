"""What the tables have in common: the order of rows, rounded numbers, headings, and what a score measures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from longctx_bench.core.types import NATURAL
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.tables.base import Entry, Mark
from longctx_bench.reporting.tables.significance import RowKey

EMPTY = Entry("")
"""Where nothing was measured."""


def row_of(summary: CellSummary) -> RowKey:
    """Return the row that a cell stands in."""
    return summary.cell.model, summary.cell.method


def cell_columns(summary: CellSummary) -> dict[str, object]:
    """Return the columns of CSV and JSON that say which cell a line is about, the same in all of them.

    ``model`` is what ``--model`` takes and tables show (``yarn-tiny``); ``base`` and ``method`` are its parts.
    """
    cell = summary.cell
    return {
        "model": summary.variant,
        "base": cell.model,
        "method": cell.method,
        "task": cell.task,
        "length": cell.length,
    }


def rows_of(cells: Iterable[CellSummary]) -> dict[RowKey, str]:
    """Return the rows with their names, sorted by base; the untouched model first, the other methods by name."""
    found = {row_of(summary): summary.variant for summary in cells}
    return dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][1] != "rope", item[0][1])))


def tasks_of(cells: Iterable[CellSummary]) -> list[str]:
    """Return the tasks in their order, the same whatever else was measured."""
    return sorted({summary.cell.task for summary in cells})


def contexts_of(cells: Iterable[CellSummary]) -> frozenset[int]:
    """Return the training contexts of all bases."""
    return frozenset(summary.original_length for summary in cells)


def unit_of(summary: CellSummary) -> str:
    """Return a score's unit: per cent, nats a token, or none that is known."""
    return "%" if summary.percent else "nats a token" if summary.metric == "token_loss" else ""


def direction_of(summary: CellSummary) -> str:
    """Return which way is better."""
    return f"{'higher' if summary.higher_is_better else 'lower'} is better"


def metric_description(summary: CellSummary) -> str:
    """Say what a score is: metric, unit, interval, direction."""
    unit = unit_of(summary)
    return f"{summary.metric}{f' in {unit}' if unit else ''} [95 % interval], {direction_of(summary)}"


def n_per_cell(cells: Iterable[CellSummary]) -> str:
    """Return how many examples a cell has, or the range."""
    found = sorted({summary.n for summary in cells})
    return f"n = {found[0]:,} a cell" if len(found) == 1 else f"n = {found[0]:,} to {found[-1]:,} a cell"


def length_heading(length: int, contexts: frozenset[int]) -> str:
    """Return a length with its scale, where all models share one training context."""
    if length == NATURAL:
        return "natural"
    if len(contexts) != 1:
        return f"{length:,}"
    return f"{length:,} ({length / next(iter(contexts)):g}x)"


def length_label(length: int) -> str:
    """Return a length as prose has it."""
    return "natural" if length == NATURAL else f"{length:,}"


def score_entry(summary: CellSummary | None, mark: Mark = Mark.NONE) -> Entry:
    """Return a cell's mean and interval, rounded by its width."""
    if summary is None:
        return EMPTY
    return interval_entry(summary.score, summary.low, summary.high, summary.percent, mark)


def interval_entry(
    mean: float, low: float, high: float, percent: bool, mark: Mark = Mark.NONE, signed: bool = False
) -> Entry:
    """Return a mean and its interval with as many digits as the interval's width warrants.

    Args:
        mean: in [0, 1] for per cent.
        low: of the interval; nothing is said of an interval that has no bounds.
        high: of the interval.
        percent: show as per cent.
        mark: of the entry.
        signed: a difference, shown with its sign.
    """
    digits = num_decimals(high - low, percent)
    text, below, above = (format_number(value, digits, percent, signed) for value in (mean, low, high))
    return Entry(text, f"[{below}, {above}]" if math.isfinite(high - low) else "", mark)


def num_decimals(width: float, percent: bool) -> int:
    """Return how many decimals an interval of that width warrants.

    A hundred examples cannot tell tenths of a percent apart: digits follow the interval's width. Losses and what
    has no unit have three where the interval is that narrow.
    """
    if percent:
        return 1 if width < 0.1 else 0
    if width < 0.2 or not math.isfinite(width):
        return 3
    return 2 if width < 10 else 1


def format_number(value: float, digits: int, percent: bool, signed: bool = False) -> str:
    """Return a number with so many decimals, a share as per cent."""
    shown = f"{100 * value if percent else value:{'+' if signed else ''},.{digits}f}"
    # A sign before nothing but zeros says more than was measured.
    return shown if shown.strip("+-0.") else shown.lstrip("+-")


def join_names(names: Sequence[str], most: int = 6) -> str:
    """Return names with commas; of a long list its beginning and how many follow."""
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
