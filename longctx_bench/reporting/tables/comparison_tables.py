"""A comparison as tables: one row a cell, then a row a task; and one of exact numbers for programs."""

from __future__ import annotations

from collections.abc import Sequence

from longctx_bench.core.sanitize import pluralize
from longctx_bench.core.types import NATURAL
from longctx_bench.reporting.comparison import ComparedCell, Comparison
from longctx_bench.reporting.stats.paired_tests import FEWEST, LEVEL
from longctx_bench.reporting.tables.base import Table
from longctx_bench.reporting.tables.formatting import digits_of, number, rounded, tokens_name


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Return the rows of a comparison for readers, and its totals by task; numbers are rounded by their interval."""
    a, b = comparison.a, comparison.b
    header = ("task", "length", "scale", "n", a, b, "difference [95 %]", "p", "p (Holm)", "won/tied/lost", "test")
    rows = tuple(_row(cell) for cell in comparison.cells)
    return [
        Table(f"{a} against {b}: paired on identical examples", header, rows, _notes(comparison), keys=3),
        _totals(comparison),
    ]


def exact_table(comparison: Comparison) -> Table:
    """Return one row a cell, unrounded: scores in [0, 1], losses in nats; whole documents have length and scale 0."""
    rows = exact_rows(comparison)
    shown = tuple(tuple(map(str, row.values())) for row in rows)
    return Table(f"{comparison.a} against {comparison.b}", tuple(rows[0]), shown, records=tuple(rows))


def exact_rows(comparison: Comparison) -> list[dict[str, object]]:
    """Return one mapping a cell, by column of :func:`exact_table`."""
    return [_exact(comparison, cell) for cell in comparison.cells]


def _exact(comparison: Comparison, cell: ComparedCell) -> dict[str, object]:
    found = cell.result
    return {
        "a": comparison.a,
        "b": comparison.b,
        "task": cell.task,
        "length": cell.length,
        "scale": 0 if cell.length == NATURAL else "" if cell.scale is None else cell.scale,
        "metric": cell.metric,
        "higher_is_better": cell.higher_is_better,
        "n": found.n,
        "score_a": found.mean_a,
        "score_b": found.mean_b,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "p_holm": cell.p_holm,
        "wins": found.wins,
        "ties": found.ties,
        "losses": found.losses,
        "test": found.test,
    }


def _row(cell: ComparedCell) -> tuple[str, ...]:
    found = cell.result
    digits = digits_of(found.high - found.low, cell.percent)
    return (
        cell.task,
        tokens_name(cell.length),
        "" if cell.scale is None else f"{cell.scale:g}x",
        f"{found.n:,}",
        rounded(found.mean_a, digits, cell.percent),
        rounded(found.mean_b, digits, cell.percent),
        str(number(found.difference, found.low, found.high, cell.percent, signed=True)),
        _p(found.p),
        _p(cell.p_holm),
        f"{found.wins}/{found.ties}/{found.losses}",
        found.test,
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
    note = f"better: beyond chance, p (Holm) below {LEVEL:g}"
    return Table(f"{a} against {b} by task: cells, and examples of all of them", header, rows, (note,))


def _total(task: str, cells: Sequence[ComparedCell]) -> tuple[str, ...]:
    verdicts = [cell.verdict for cell in cells]
    found = [cell.result for cell in cells]
    examples = "/".join(str(sum(counts)) for counts in zip(*((f.wins, f.ties, f.losses) for f in found), strict=True))
    return (task, str(len(cells)), *(str(verdicts.count(verdict)) for verdict in (1, 0, -1)), examples)


def _notes(comparison: Comparison) -> tuple[str, ...]:
    tasks: dict[str, list[str]] = {}
    for cell in comparison.cells:
        unit = "in %" if cell.percent else "in nats a token" if cell.metric == "token_loss" else "as they are"
        what = f"scores {unit}, {'higher' if cell.higher_is_better else 'lower'} is better"
        tasks.setdefault(what, []).append(cell.task)
    several = len(tasks) > 1
    units = [f"{', '.join(dict.fromkeys(own))}: {what}" if several else what for what, own in tasks.items()]
    return (
        *units,
        f"difference: {comparison.a} minus {comparison.b}; won: {comparison.a} is better on that example",
        f"p (Holm): corrected for the {pluralize(len(comparison.cells), 'cell')} of this table",
        *_too_few(comparison.cells),
        *comparison.notes,
    )


def _too_few(cells: Sequence[ComparedCell]) -> list[str]:
    """Say which rows have fewer examples than any difference could be significant with."""
    small = sorted({cell.result.n for cell in cells if cell.result.n < FEWEST})
    if not small:
        return []
    span = f"n = {small[0]}" if len(small) == 1 else f"n = {small[0]} to {small[-1]}"
    return [f"{span} is too small to show anything at {100 * LEVEL:g} %"]
