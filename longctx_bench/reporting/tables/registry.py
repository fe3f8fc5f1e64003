"""Which tables a report shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longctx_bench.core.plugin_registry import PluginRegistry
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.tables.base import Table
from longctx_bench.reporting.tables.cost import cost_tables
from longctx_bench.reporting.tables.scores_by_length import length_tables
from longctx_bench.reporting.tables.scores_by_task import task_tables
from longctx_bench.reporting.tables.summary import summary_tables

KINDS: PluginRegistry[Callable[[Sequence[CellSummary]], list[Table]]] = PluginRegistry(
    "table",
    {"lengths": length_tables, "tasks": task_tables, "summary": summary_tables, "cost": cost_tables},
)
"""Functions from cells to tables, as ``report --table`` names them."""


def report_tables(cells: Sequence[CellSummary], kind: str = "lengths") -> list[Table]:
    """Return the tables of a kind, or of each with ``all``; none where the cells are too few for it."""
    kinds = KINDS.names() if kind == "all" else [kind]
    return [table for name in kinds for table in KINDS[name](cells)]
