"""Formatting shared by all tables: row order, rounding, headings, units."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from longctx_bench.core.types import NATURAL
from longctx_bench.reporting.results import CAVEATS, CellSummary
from longctx_bench.reporting.tables.base import Entry, Mark
from longctx_bench.reporting.tables.significance import RowKey


class Scored(Protocol):
    """A cell, of one model or compared between two."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    @property
    def percent(self) -> bool:
        """Whether scores in [0, 1] are shown in per cent."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher score is a better one."""

    @property
    def n(self) -> int:
        """Examples."""


EMPTY = Entry("")
"""Entry where nothing was measured."""


def row_of(summary: CellSummary) -> RowKey:
    """Return the row of a cell."""
    return summary.cell.model, summary.cell.method


def cell_columns(summary: CellSummary) -> dict[str, object]:
    """Return the CSV and JSON columns that identify a cell, the same in all tables.

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


def caveats_of(cells: Iterable[CellSummary]) -> str:
    """Return the gaps in the provenance of some cells as one CSV value, empty where there are none."""
    caveats = {caveat for summary in cells for caveat in summary.caveats}
    return "; ".join(caveat for caveat in CAVEATS if caveat in caveats)


def rows_of(cells: Iterable[CellSummary]) -> dict[RowKey, str]:
    """Return rows with their names, sorted by base, the unmodified model first, then methods by name."""
    names = {row_of(summary): summary.variant for summary in cells}
    return dict(sorted(names.items(), key=lambda item: (item[0][0], item[0][1] != "rope", item[0][1])))


def tasks_of(cells: Iterable[CellSummary]) -> list[str]:
    """Return the tasks, sorted by name."""
    return sorted({summary.cell.task for summary in cells})


def contexts_of(cells: Iterable[CellSummary]) -> frozenset[int]:
    """Return the training contexts of all bases."""
    return frozenset(summary.original_length for summary in cells)


def unit_of(summary: Scored) -> str:
    """Return the unit of a score: per cent, nats per token, or empty where unknown."""
    return "%" if summary.percent else "nats a token" if summary.metric == "token_loss" else ""


def direction_of(summary: Scored) -> str:
    """Return ``higher is better`` or ``lower is better``."""
    return f"{'higher' if summary.higher_is_better else 'lower'} is better"


def metric_description(summary: CellSummary) -> str:
    """Describe a score: metric, unit, interval, direction."""
    unit = unit_of(summary)
    return f"{summary.metric}{f' in {unit}' if unit else ''} [95 % interval], {direction_of(summary)}"


def n_per_cell(cells: Iterable[Scored]) -> str:
    """Return the number of examples per cell, or its range, as text."""
    counts = sorted({summary.n for summary in cells})
    return f"n = {counts[0]:,} a cell" if len(counts) == 1 else f"n = {counts[0]:,} to {counts[-1]:,} a cell"


def length_heading(length: int, contexts: frozenset[int]) -> str:
    """Return a length as a column heading, with its scale where all models share one training context."""
    if length == NATURAL:
        return "natural"
    if len(contexts) != 1:
        return f"{length:,}"
    return f"{length:,} ({length / next(iter(contexts)):g}x)"


def length_label(length: int) -> str:
    """Return a length in tokens with thousands separators, or ``natural``."""
    return "natural" if length == NATURAL else f"{length:,}"


def score_entry(summary: CellSummary | None, mark: Mark = Mark.NONE) -> Entry:
    """Return a cell's score and interval as a table entry."""
    if summary is None:
        return EMPTY
    return interval_entry(summary.score, summary.low, summary.high, summary.percent, mark)


def interval_entry(
    mean: float, low: float, high: float, percent: bool, mark: Mark = Mark.NONE, signed: bool = False
) -> Entry:
    """Return a mean and its interval, rounded according to the interval's width.

    Args:
        mean: in [0, 1] where ``percent``.
        low: lower bound of the interval; infinite intervals are not shown.
        high: upper bound.
        percent: show in per cent.
        mark: significance mark.
        signed: show the sign, for differences.
    """
    digits = num_decimals(high - low, percent)
    text, below, above = (format_number(value, digits, percent, signed) for value in (mean, low, high))
    return Entry(text, f"[{below}, {above}]" if math.isfinite(high - low) else "", mark)


def num_decimals(width: float, percent: bool) -> int:
    """Return the number of decimals for an interval of that width.

    A hundred examples cannot resolve tenths of a per cent, so decimals follow the width. Losses and scores without a
    unit get up to three.
    """
    if percent:
        return 1 if width < 0.1 else 0
    if width < 0.2 or not math.isfinite(width):
        return 3
    return 2 if width < 10 else 1


def format_number(value: float, digits: int, percent: bool, signed: bool = False) -> str:
    """Return a number as text with ``digits`` decimals, times 100 where ``percent``."""
    text = f"{100 * value if percent else value:{'+' if signed else ''},.{digits}f}"
    # No sign on a zero.
    return text if text.strip("+-0.") else text.lstrip("+-")


def list_names(names: Sequence[str], max_names: int = 6) -> str:
    """Join names with commas; a long list is cut and its remainder counted."""
    if len(names) <= max_names + 1:
        return ", ".join(names)
    return f"{', '.join(names[:max_names])} and {len(names) - max_names} more"
