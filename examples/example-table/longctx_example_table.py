"""A kind of table: each model's worst task and length."""

from __future__ import annotations

from collections.abc import Sequence

from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.tables.base import Entry, Table


def worst(cells: Sequence[CellSummary]) -> list[Table]:
    """Return one table, one row per model; tasks that are not scored in per cent are left out."""
    shown = [cell for cell in cells if cell.percent]
    rows = []
    for name in sorted({cell.variant for cell in shown}):
        cell = min((cell for cell in shown if cell.variant == name), key=lambda cell: cell.score)
        score = Entry(f"{100 * cell.score:.0f}", f"[{100 * cell.low:.0f}, {100 * cell.high:.0f}]")
        rows.append((name, cell.cell.task, f"{cell.cell.length:,}", score))
    header = ("model", "worst task", "length", "score (%) [95 % interval]")
    return [Table("worst: the lowest score of each model", header, tuple(rows))] if rows else []
