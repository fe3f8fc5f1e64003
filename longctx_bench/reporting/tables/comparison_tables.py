"""Tables of paired comparisons: a row per cell and totals per task, or a row per model; unrounded for CSV and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from longctx_bench.core.sanitize import pluralize
from longctx_bench.core.types import NATURAL
from longctx_bench.reporting.comparison import ComparedCell, Comparison
from longctx_bench.reporting.stats.paired_tests import MIN_DIFFERING_PAIRS, SIGNIFICANCE_LEVEL
from longctx_bench.reporting.tables.base import Entry, Table
from longctx_bench.reporting.tables.formatting import (
    EMPTY,
    direction_of,
    format_number,
    interval_entry,
    length_label,
    n_per_cell,
    num_decimals,
    unit_of,
)


def comparison_tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """Return the tables of one comparison, a row per cell, or of several with one model, a row per model; rounded."""
    return _cells_and_totals(comparisons[0]) if len(comparisons) == 1 else _differences_by_task(comparisons)


def _cells_and_totals(comparison: Comparison) -> list[Table]:
    a, b = comparison.a, comparison.b
    header = ("task", "length", "scale", "n", a, b, "difference [95 %]", "p", "p (Holm)", "won/tied/lost", "test")
    rows = tuple(_row(cell) for cell in comparison.cells)
    return [
        Table(f"{a} against {b}: paired on identical examples", header, rows, _notes(comparison), keys=3),
        _totals(comparison),
    ]


def _differences_by_task(comparisons: Sequence[Comparison]) -> list[Table]:
    tasks = dict.fromkeys(cell.task for comparison in comparisons for cell in comparison.cells)
    return [_differences(task, comparisons) for task in tasks]


def _differences(task: str, comparisons: Sequence[Comparison]) -> Table:
    cells = {(c.a, cell.length): cell for c in comparisons for cell in c.cells if cell.task == task}
    lengths = sorted({length for _, length in cells})
    scales = {length: {cell.scale for (_, at), cell in cells.items() if at == length} for length in lengths}
    first = next(iter(cells.values()))
    unit = "points" if first.percent else unit_of(first)
    rows: tuple[tuple[str | Entry, ...], ...] = tuple(
        (comparison.a, *(_difference(cells.get((comparison.a, length))) for length in lengths))
        for comparison in comparisons
        if any((comparison.a, length) in cells for length in lengths)
    )
    what = f"{first.metric}, difference from {comparisons[0].b}{f' in {unit}' if unit else ''} [95 % interval]"
    return Table(
        f"{task}: {what}, {direction_of(first)}, {n_per_cell(cells.values())}",
        ("model", *(_heading(length, scales[length]) for length in lengths)),
        rows,
        (
            f"difference: each model minus {comparisons[0].b}, paired on identical examples",
            f"*: beyond chance, p (Holm) below {SIGNIFICANCE_LEVEL:g}, corrected for the "
            f"{pluralize(len(cells), 'cell')} of this table",
            *_too_few(tuple(cells.values())),
            *dict.fromkeys(note for c in comparisons if any(cell.task == task for cell in c.cells) for note in c.notes),
        ),
    )


def _heading(length: int, scales: set[float | None]) -> str:
    scale = next(iter(scales)) if len(scales) == 1 else None
    return length_label(length) if scale is None else f"{length_label(length)} ({scale:g}x)"


def _difference(cell: ComparedCell | None) -> Entry:
    if cell is None:
        return EMPTY
    result = cell.result
    entry = interval_entry(result.difference, result.low, result.high, cell.percent, signed=True)
    return replace(entry, detail=f"{entry.detail} *".lstrip()) if cell.winner else entry


def exact_table(comparisons: Sequence[Comparison]) -> Table:
    """Return one row per cell, unrounded: scores in [0, 1], losses in nats; whole documents have length and scale 0."""
    rows = exact_rows(comparisons)
    shown = tuple(tuple(map(str, row.values())) for row in rows)
    names = ", ".join(comparison.a for comparison in comparisons)
    return Table(f"{names} against {comparisons[0].b}", tuple(rows[0]), shown, records=tuple(rows))


def exact_rows(comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
    """Return one mapping per cell, with the columns of :func:`exact_table`."""
    return [_exact(comparison, cell) for comparison in comparisons for cell in comparison.cells]


def _exact(comparison: Comparison, cell: ComparedCell) -> dict[str, object]:
    result = cell.result
    return {
        "a": comparison.a,
        "b": comparison.b,
        "task": cell.task,
        "length": cell.length,
        "scale": 0 if cell.length == NATURAL else "" if cell.scale is None else cell.scale,
        "metric": cell.metric,
        "higher_is_better": cell.higher_is_better,
        "n": result.n,
        "score_a": result.mean_a,
        "score_b": result.mean_b,
        "difference": result.difference,
        "low": result.low,
        "high": result.high,
        "p": result.p,
        "p_holm": cell.p_holm,
        "wins": result.wins,
        "ties": result.ties,
        "losses": result.losses,
        "test": result.test,
        "caveats_a": cell.caveats_a,
        "caveats_b": cell.caveats_b,
    }


def _row(cell: ComparedCell) -> tuple[str, ...]:
    result = cell.result
    digits = num_decimals(result.high - result.low, cell.percent)
    return (
        cell.task,
        length_label(cell.length),
        "" if cell.scale is None else f"{cell.scale:g}x",
        f"{result.n:,}",
        format_number(result.mean_a, digits, cell.percent),
        format_number(result.mean_b, digits, cell.percent),
        str(interval_entry(result.difference, result.low, result.high, cell.percent, signed=True)),
        _p(result.p),
        _p(cell.p_holm),
        f"{result.wins}/{result.ties}/{result.losses}",
        result.test,
    )


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _totals(comparison: Comparison) -> Table:
    by_task: dict[str, list[ComparedCell]] = {}
    for cell in comparison.cells:
        by_task.setdefault(cell.task, []).append(cell)
    rows = tuple(_total(task, cells) for task, cells in by_task.items())
    a, b = comparison.a, comparison.b
    header = ("task", "cells", f"{a} better", "not told apart", f"{b} better", "examples won/tied/lost")
    note = f"better: beyond chance, p (Holm) below {SIGNIFICANCE_LEVEL:g}"
    return Table(f"{a} against {b} by task: cells, and examples of all of them", header, rows, (note,))


def _total(task: str, cells: Sequence[ComparedCell]) -> tuple[str, ...]:
    winners = [cell.winner for cell in cells]
    results = [cell.result for cell in cells]
    examples = "/".join(str(sum(counts)) for counts in zip(*((f.wins, f.ties, f.losses) for f in results), strict=True))
    return (task, str(len(cells)), *(str(winners.count(winner)) for winner in (1, 0, -1)), examples)


def _notes(comparison: Comparison) -> tuple[str, ...]:
    tasks: dict[str, list[str]] = {}
    for cell in comparison.cells:
        unit = "in %" if cell.percent else "in nats a token" if cell.metric == "token_loss" else "as they are"
        description = f"scores {unit}, {direction_of(cell)}"
        tasks.setdefault(description, []).append(cell.task)
    several = len(tasks) > 1
    units = [
        f"{', '.join(dict.fromkeys(task_names))}: {text}" if several else text for text, task_names in tasks.items()
    ]
    return (
        *units,
        f"difference: {comparison.a} minus {comparison.b}; won: {comparison.a} is better on that example",
        f"p (Holm): corrected for the {pluralize(len(comparison.cells), 'cell')} of this table",
        *_too_few(comparison.cells),
        *comparison.notes,
    )


def _too_few(cells: Sequence[ComparedCell]) -> list[str]:
    """Return a note on rows with too few examples for any difference to be significant."""
    small = sorted({cell.result.n for cell in cells if cell.result.n < MIN_DIFFERING_PAIRS})
    if not small:
        return []
    span = f"n = {small[0]}" if len(small) == 1 else f"n = {small[0]} to {small[-1]}"
    return [f"{span} is too small to show anything at {100 * SIGNIFICANCE_LEVEL:g} %"]
