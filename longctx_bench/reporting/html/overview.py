"""Cells of the page: scores with intervals, scores by depth, provenance, and table layout."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longctx_bench.core.types import NATURAL, length_name
from longctx_bench.reporting.html.cell_provenance import provenance
from longctx_bench.reporting.html.examples import TextPool
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.stats.confidence_intervals import mean_interval
from longctx_bench.reporting.tables.base import Entry, Table
from longctx_bench.reporting.tables.formatting import score_entry
from longctx_bench.reporting.tables.scores_by_length import length_tables


@dataclass(frozen=True)
class PageColumn:
    """A column (length) of a task's table."""

    length: int
    name: str
    scale: str
    """Length / training context where all models share one; else empty."""
    last_trained: bool
    """Whether this is the longest length within the training context, with longer ones after it."""


@dataclass(frozen=True)
class PageCell:
    """A cell in a task's table."""

    entry: Entry
    """Score, interval and mark, as in the other formats."""
    order: float
    """Sort key: the unrounded score."""
    cell: int
    """Index of the cell in the page."""


@dataclass(frozen=True)
class TaskTable:
    """One task's scores: models x lengths."""

    task: str
    title: str
    columns: tuple[PageColumn, ...]
    rows: tuple[tuple[str, tuple[PageCell | None, ...]], ...]
    notes: tuple[str, ...]
    others: tuple[Table, ...]
    """Further tables of the task, such as scores by document length."""


def sort_cells(cells: Sequence[CellSummary]) -> list[CellSummary]:
    """Sort cells by task in order of appearance, base, method (the unmodified model first) and length."""
    tasks = {name: index for index, name in enumerate(dict.fromkeys(s.cell.task for s in cells))}
    return sorted(
        cells,
        key=lambda s: (tasks[s.cell.task], s.cell.model, s.cell.method != "rope", s.cell.method, s.cell.length),
    )


def page_tables(cells: Sequence[CellSummary]) -> list[TaskTable]:
    """Return one table per task, for cells in the order of :func:`sort_cells`."""
    tables = []
    for task in dict.fromkeys(summary.cell.task for summary in cells):
        task_cells = [(number, summary) for number, summary in enumerate(cells) if summary.cell.task == task]
        by_position = {(s.variant, s.cell.length): (number, s) for number, s in task_cells}
        contexts = {s.original_length for _, s in task_cells}
        context = contexts.pop() if len(contexts) == 1 else None
        columns = _columns(sorted({s.cell.length for _, s in task_cells}), context)
        main, *others = length_tables([s for _, s in task_cells])
        rows = tuple(
            (
                str(name),
                tuple(
                    _page_cell(entry, by_position.get((str(name), c.length)))
                    for entry, c in zip(entries, columns, strict=True)
                ),
            )
            for name, *entries in main.rows
        )
        notes = (
            *_contexts([s for _, s in task_cells], columns, context),
            *main.legend("bold", "underlined"),
            *main.notes,
        )
        tables.append(TaskTable(task, main.title, columns, rows, notes, tuple(others)))
    return tables


def shared_notes(tables: Sequence[TaskTable]) -> dict[str, int]:
    """Number the notes that several tables share, from 1 in order of appearance; the page prints each once."""
    under = [notes for table in tables for notes in (table.notes, *(other.notes for other in table.others))]
    count = Counter(note for notes in under for note in dict.fromkeys(notes))
    return {note: number for number, note in enumerate((n for n, times in count.items() if times > 1), start=1)}


def _columns(lengths: Sequence[int], context: int | None) -> tuple[PageColumn, ...]:
    trained = [length for length in lengths if length != NATURAL and context and length <= context]
    last = trained[-1] if trained and trained[-1] != lengths[-1] else None
    return tuple(
        PageColumn(
            length,
            "natural" if length == NATURAL else f"{length:,}",
            f"{length / context:g}x" if context and length != NATURAL else "",
            length == last,
        )
        for length in lengths
    )


def _contexts(cells: Sequence[CellSummary], columns: Sequence[PageColumn], context: int | None) -> tuple[str, ...]:
    """Return the note on the training context: the dashed line where there is one, else each base's context."""
    if any(column.last_trained for column in columns):
        return (f"dashed line: to its right lies what the model was never trained on (over {context:,} tokens)",)
    contexts = {s.cell.model: s.original_length for s in cells}
    return ("training contexts: " + ", ".join(f"{name} {length:,} tokens" for name, length in contexts.items()),)


def _page_cell(entry: str | Entry, numbered: tuple[int, CellSummary] | None) -> PageCell | None:
    if numbered is None or isinstance(entry, str):
        return None
    number, summary = numbered
    return PageCell(entry, summary.score, number)


def overview(cells: Sequence[CellSummary], examples: dict[str, Any]) -> dict[str, Any]:
    """Return the cells in the form that the page's scripts read.

    Args:
        cells: finished cells in the order of :func:`sort_cells`.
        examples: as :func:`~longctx_bench.reporting.html.examples.example_columns` returns them, for the number of
            examples per depth.
    """
    pool = TextPool()
    depths = _scores_by_depth(examples)
    cell_data = []
    for number, (summary, num_shown) in enumerate(zip(cells, examples["shown"], strict=True)):
        cell_data.append(
            {
                "name": pool(summary.variant),
                "task": pool(summary.cell.task),
                "length": summary.cell.length,
                "lengthName": length_name(summary.cell.length),
                "context": summary.original_length,
                "metric": pool(summary.metric),
                "percent": summary.percent,
                "higher": summary.higher_is_better,
                "score": _finite(summary.score),
                "low": _finite(summary.low),
                "high": _finite(summary.high),
                "shownScore": str(score_entry(summary)),
                "n": summary.n,
                "shown": num_shown,
                "depths": [
                    _depth(depth, mean, depths[number].get(depth, []) if num_shown == summary.n else [])
                    for depth, mean in summary.by_depth.items()
                ],
                "provenance": [[pool(label), pool(text)] for label, text in provenance(summary).items()],
            }
        )
    return {"texts": pool.texts, "cells": cell_data}


def _depth(depth: float, mean: float, scores: Sequence[float]) -> list[float | None]:
    """Return depth in percent, mean, and where all examples are in the page their number and the interval."""
    low, high = mean_interval(scores) if scores else (None, None)
    return [depth, round(mean, 4), len(scores) or None, low and round(low, 4), high and round(high, 4)]


def _scores_by_depth(examples: dict[str, Any]) -> list[dict[float, list[float]]]:
    """Return each cell's scores by the depth of the first needle."""
    by_cell: list[dict[float, list[float]]] = [defaultdict(list) for _ in examples["shown"]]
    rows = examples["rows"]
    for cell, prompt, score in zip(rows["cell"], rows["prompt"], rows["score"], strict=True):
        depths = examples["prompts"][prompt]["depths"]
        if depths and score is not None:
            by_cell[cell][depths[0]].append(score)
    return by_cell


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
