"""Two contestants of a run's folder, at the tasks and lengths that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.io import plain_name, safe_name
from longctx_bench.core.types import length_name
from longctx_bench.reporting.comparison import Comparison, compare
from longctx_bench.reporting.results import CellSummary, Results


def compare_chosen(
    results: Results,
    folder: Path,
    a: str,
    b: str,
    tasks: Sequence[str] = (),
    scales: Sequence[float] = (),
    lengths: Sequence[int] = (),
) -> tuple[Comparison, list[str]]:
    """Compare two contestants of a folder.

    Args:
        results: the folder's.
        folder: the run's, for messages.
        a: a contestant's name, such as ``yarn-tiny``.
        b: another's.
        tasks: to compare; all when empty.
        scales: to compare, besides ``lengths``; all when both are empty.
        lengths: in tokens.

    Returns:
        The comparison, and a line for each cell of either that is missing.

    Raises:
        UserError: a name is unknown, nothing was measured there, or nothing can be compared.
    """
    known = {summary.contestant for summary in results.finished}
    for name in (a, b):
        if name not in known:
            raise UserError(f"{folder}: no finished cell of '{name}'{did_you_mean(name, known)}")
    cells = [s for name in (a, b) for s in _chosen(name, results.finished, tasks, scales, lengths)]
    # As they are called now, and as earlier versions called them.
    folders = tuple({f"{name(s.cell.model)}/{name(s.cell.method)}/" for s in cells for name in (safe_name, plain_name)})
    return compare(cells, a, b), [line for line in results.missing if line.startswith(folders)]


def _chosen(
    name: str, cells: Sequence[CellSummary], tasks: Sequence[str], scales: Sequence[float], lengths: Sequence[int]
) -> list[CellSummary]:
    """Return the cells of a contestant that are asked for.

    Raises:
        UserError: a task was not measured, or no cell is left.
    """
    own = [summary for summary in cells if summary.contestant == name]
    for task in tasks:
        measured = {summary.cell.task for summary in own}
        if task not in measured:
            raise UserError(f"--tasks {task}: not measured for {name}{did_you_mean(task, measured)}")
    chosen = [
        s
        for s in own
        if (not tasks or s.cell.task in tasks)
        and (not (scales or lengths) or s.scale in scales or s.cell.length in lengths)
    ]
    if not chosen:
        at = ", ".join(length_name(found) for found in sorted({s.cell.length for s in own}))
        raise UserError(f"{name}: no finished cell at that --scale or --length; measured at {at} tokens")
    return chosen
