"""Score tables: methods x tasks, one per length with two or more tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import fsum, hypot

import numpy as np

from longctx_bench.core.types import NATURAL
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.tables.base import Entry, Mark, Table
from longctx_bench.reporting.tables.footnotes import difference_notes, mark_notes, method_notes, size_note
from longctx_bench.reporting.tables.formatting import (
    EMPTY,
    contexts_of,
    direction_of,
    n_per_cell,
    num_decimals,
    row_of,
    rows_of,
    score_entry,
    unit_of,
)
from longctx_bench.reporting.tables.scores_by_length import cell_record
from longctx_bench.reporting.tables.significance import (
    ColumnEntry,
    ColumnSignificance,
    RowKey,
    column_entry,
    compare_rows,
)

CellsByRow = Mapping[RowKey, CellSummary]
"""One task's cells by row."""


def task_tables(cells: Sequence[CellSummary]) -> list[Table]:
    """Return one table per length with two or more tasks. Empty entries were not measured."""
    tables = []
    for length in sorted({summary.cell.length for summary in cells}, key=lambda length: (length == NATURAL, length)):
        columns: dict[str, dict[RowKey, CellSummary]] = {}
        for summary in cells:
            if summary.cell.length == length:
                columns.setdefault(summary.cell.task, {})[row_of(summary)] = summary
        if len(columns) > 1:
            tables.append(_at_length(length, dict(sorted(columns.items()))))
    return tables


def _at_length(length: int, columns: Mapping[str, CellsByRow]) -> Table:
    cells = [summary for column in columns.values() for summary in column.values()]
    names = rows_of(cells)
    significance = {
        task: compare_rows(column_entry(column[row]) for row in names if row in column)
        for task, column in columns.items()
    }
    rows = []
    averages = _averages(columns, names)
    for row, name in names.items():
        entries = [
            score_entry(column[row], significance[task].by_row[row].mark) if row in column else EMPTY
            for task, column in columns.items()
        ]
        rows.append((name, *entries, *averages.get(row, ())))
    title, heads = _headings(length, columns)
    return Table(
        title=f"{title}, {n_per_cell(cells)}",
        header=("model", *heads, *(["average"] if averages else [])),
        rows=tuple(rows),
        notes=(*_notes(columns, cells, names, significance),),
        records=tuple(cell_record(s, significance[s.cell.task].by_row[row_of(s)]) for s in cells),
    )


def _notes(
    columns: Mapping[str, CellsByRow],
    cells: Sequence[CellSummary],
    names: dict[RowKey, str],
    significance: Mapping[str, ColumnSignificance],
) -> list[str]:
    notes = []
    by_unit: dict[str, list[CellSummary]] = {}
    for summary in cells:
        by_unit.setdefault(unit_of(summary), []).append(summary)
    notes += [size_note(unit_cells) for unit_cells in by_unit.values()]
    metrics = {task: next(iter(column.values())).metric for task, column in columns.items()}
    by_metric: dict[str, list[str]] = {}
    for task, metric in metrics.items():
        by_metric.setdefault(metric, []).append(task)
    if len(by_metric) > 1:
        notes.append("metrics: " + "; ".join(f"{metric}: {', '.join(tasks)}" for metric, tasks in by_metric.items()))
    return notes + method_notes(cells) + mark_notes(significance.values(), names) + difference_notes(cells)


def _headings(length: int, columns: Mapping[str, CellsByRow]) -> tuple[str, list[str]]:
    """Return title and column heads; unit and direction go into the title where all tasks share them."""
    firsts = {task: next(iter(column.values())) for task, column in columns.items()}
    cells = [summary for column in columns.values() for summary in column.values()]
    at = "whole documents" if length == NATURAL else f"{length:,} tokens"
    if length != NATURAL and len(contexts_of(cells)) == 1:
        at += f" ({cells[0].scale:g}x)"
    shared = {(unit_of(summary), direction_of(summary)) for summary in firsts.values()}
    if len(shared) == 1:
        [(unit, direction)] = shared
        metrics = {summary.metric for summary in firsts.values()}
        what = next(iter(metrics)) if len(metrics) == 1 else "scores"
        return f"{at}: {what}{f' in {unit}' if unit else ''} [95 % interval], {direction}", list(firsts)
    heads = [
        f"{task} ({', '.join(filter(None, [unit_of(s), '' if s.higher_is_better else 'lower is better']))})".replace(
            " ()", ""
        )
        for task, s in firsts.items()
    ]
    return f"{at}: scores by task [95 % interval], higher is better unless the column says otherwise", heads


def _averages(columns: Mapping[str, CellsByRow], names: Mapping[RowKey, str]) -> dict[RowKey, tuple[Entry]]:
    """Return the unweighted mean over tasks of each row; empty unless every row has every task in per cent.

    Significance marks pool the examples of all tasks. They need the same number of examples in every cell: only then
    is the mean over tasks the mean over examples.
    """
    cells = [summary for column in columns.values() for summary in column.values()]
    complete = all(row in column for column in columns.values() for row in names)
    if not complete or not all(s.percent for s in cells) or len({s.higher_is_better for s in cells}) > 1:
        return {}
    marks: dict[RowKey, Mark] = {}
    if len({summary.n for summary in cells}) == 1:
        pooled = compare_rows(_pooled(row, [column[row] for column in columns.values()]) for row in names)
        marks = {row: significance.mark for row, significance in pooled.by_row.items()}
    averages = {}
    for row in names:
        row_cells = [column[row] for column in columns.values()]
        mean = fsum(summary.score for summary in row_cells) / len(row_cells)
        # The examples of different tasks are independent: interval widths add in quadrature.
        width = hypot(*(summary.high - summary.low for summary in row_cells)) / len(row_cells)
        entry = Entry(f"{100 * mean:.{num_decimals(width, percent=True)}f}", "", marks.get(row, Mark.NONE))
        averages[row] = (entry,)
    return averages


def _pooled(row: RowKey, row_cells: Sequence[CellSummary]) -> ColumnEntry:
    entries = [column_entry(summary) for summary in row_cells]
    score = fsum(entry.score for entry in entries) / len(entries)
    examples = tuple(entry.examples for entry in entries)
    return ColumnEntry(
        row, score, np.concatenate([entry.scores for entry in entries]), examples, row_cells[0].higher_is_better
    )
