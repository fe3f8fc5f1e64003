"""Which tables a report shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longctx_bench.extensions import Extensions
from longctx_bench.reporting.cost_tables import cost_tables
from longctx_bench.reporting.length_tables import length_tables
from longctx_bench.reporting.summaries import CellSummary
from longctx_bench.reporting.summary_tables import summary_tables
from longctx_bench.reporting.tables import Table
from longctx_bench.reporting.task_tables import task_tables

KINDS: Extensions[Callable[[Sequence[CellSummary]], list[Table]]] = Extensions(
    "table",
    {"lengths": length_tables, "tasks": task_tables, "summary": summary_tables, "cost": cost_tables},
)
"""Functions from cells to tables, as ``report --table`` names them."""


def report_tables(cells: Sequence[CellSummary], kind: str = "lengths") -> list[Table]:
    """Return the tables of a kind, or of each with ``all``; none where the cells are too few for it."""
    kinds = KINDS.names() if kind == "all" else [kind]
    return [table for name in kinds for table in KINDS[name](cells)]
