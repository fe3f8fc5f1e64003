"""Registry of tables: what ``report --table`` offers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from longctx_bench.core.plugin_registry import PluginRegistry
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.tables.base import Table
from longctx_bench.reporting.tables.cost import cost_tables
from longctx_bench.reporting.tables.scores_by_length import length_tables
from longctx_bench.reporting.tables.scores_by_task import task_tables
from longctx_bench.reporting.tables.summary import summary_tables

TABLE_KINDS: PluginRegistry[Callable[[Sequence[CellSummary]], list[Table]]] = PluginRegistry(
    "table",
    {"lengths": length_tables, "tasks": task_tables, "summary": summary_tables, "cost": cost_tables},
)
"""Functions from cells to tables, by the name that ``report --table`` takes."""


def report_tables(cells: Sequence[CellSummary], kind: str = "lengths", price: bool = False) -> list[Table]:
    """Return the tables of one kind, or of all kinds with ``all``; may be empty.

    Args:
        cells: of any models and tasks.
        kind: a name in :data:`TABLE_KINDS`, or ``all``.
        price: as for :func:`~longctx_bench.reporting.tables.scores_by_length.length_tables`, with ``lengths`` alone.
    """
    if price and kind == "lengths":
        return length_tables(cells, price=True)
    kinds = TABLE_KINDS.names() if kind == "all" else [kind]
    return [table for name in kinds for table in TABLE_KINDS[name](cells)]
