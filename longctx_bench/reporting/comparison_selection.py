"""Comparison of models of a run's folder, two or several with one, at selected tasks, scales and lengths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.io import plain_name, safe_name
from longctx_bench.core.types import length_name
from longctx_bench.reporting.comparison import Comparison, compare, corrected_by_task
from longctx_bench.reporting.results import CellSummary, Results

ALL = "all"
"""In place of names: all models that share examples with the other one."""


def compare_selected(
    results: Results,
    folder: Path,
    a: str,
    b: str,
    tasks: Sequence[str] = (),
    scales: Sequence[float] = (),
    lengths: Sequence[int] = (),
) -> tuple[Comparison, list[str]]:
    """Compare two models at the selected tasks, scales and lengths.

    Args:
        results: results of the folder.
        folder: the run's folder, for messages.
        a: a model's name, such as ``yarn-tiny``.
        b: the other model's name.
        tasks: tasks to compare; all when empty.
        scales: scales to compare, in addition to ``lengths``; all when both are empty.
        lengths: lengths to compare, in tokens.

    Returns:
        The comparison, and one line per missing cell of either model.

    Raises:
        UserError: a name is unknown, the selection was not measured, or nothing can be compared.
    """
    measured = {summary.variant for summary in results.finished}
    for name in (a, b):
        if name not in measured:
            raise UserError(f"{folder}: no finished cell of '{name}'{did_you_mean(name, measured)}")
    cells = [s for name in (a, b) for s in _select(name, results.finished, tasks, scales, lengths)]
    # Current and legacy folder names.
    prefixes = tuple(
        {f"{name(s.cell.model)}/{name(s.cell.method)}/" for s in cells for name in (safe_name, plain_name)}
    )
    return compare(cells, a, b), [line for line in results.missing if line.startswith(prefixes)]


def compare_several(
    results: Results,
    folder: Path,
    names: Sequence[str],
    b: str,
    tasks: Sequence[str] = (),
    scales: Sequence[float] = (),
    lengths: Sequence[int] = (),
) -> tuple[list[Comparison], list[str]]:
    """Compare several models with one; p values are corrected over the cells of a task in all comparisons.

    One model is compared as by :func:`compare_selected`.

    Args:
        results: results of the folder.
        folder: the run's folder, for messages.
        names: models to compare; ``[ALL]`` for all that can be.
        b: the model that each is compared with.
        tasks: as in :func:`compare_selected`, like the two that follow.
        scales: scales to compare.
        lengths: lengths to compare, in tokens.

    Returns:
        One comparison per model, in the order of ``names``, and one line per missing cell of any.

    Raises:
        UserError: as :func:`compare_selected`; with ``[ALL]``, only if no model can be compared.
    """
    if not names:
        raise UserError(f"no model to compare with {b} is given")
    compare_all = set(names) == {ALL}
    chosen = sorted({s.variant for s in results.finished} - {b}) if compare_all else dict.fromkeys(names)
    comparisons, missing, problems = [], dict[str, None](), []
    for name in chosen:
        try:
            comparison, lines = compare_selected(results, folder, name, b, tasks, scales, lengths)
        except UserError as error:
            if not compare_all:
                raise
            problems.append(error)
            continue
        comparisons.append(comparison)
        missing.update(dict.fromkeys(lines))
    if not comparisons:
        raise (
            problems[0] if problems else UserError(f"{folder}: no model but {b}, which cannot be compared with itself")
        )
    return comparisons if len(comparisons) == 1 else corrected_by_task(comparisons), list(missing)


def _select(
    name: str, cells: Sequence[CellSummary], tasks: Sequence[str], scales: Sequence[float], lengths: Sequence[int]
) -> list[CellSummary]:
    """Return the selected cells of a model.

    Raises:
        UserError: a task was not measured, or no cell is selected.
    """
    cells = [summary for summary in cells if summary.variant == name]
    for task in tasks:
        measured = {summary.cell.task for summary in cells}
        if task not in measured:
            raise UserError(f"--tasks {task}: not measured for {name}{did_you_mean(task, measured)}")
    selected = [
        s
        for s in cells
        if (not tasks or s.cell.task in tasks)
        and (not (scales or lengths) or s.scale in scales or s.cell.length in lengths)
    ]
    if not selected:
        at = ", ".join(length_name(length) for length in sorted({s.cell.length for s in cells}))
        raise UserError(f"{name}: no finished cell at that --scale or --length; measured at {at} tokens")
    return selected
