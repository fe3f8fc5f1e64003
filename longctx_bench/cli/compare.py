"""``longctx-bench compare``: two methods on identical examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from longctx_bench.cli.options import parse_lengths, parse_scales, parts
from longctx_bench.cli.output import format_of, format_option, out_option, put, require_finished, say
from longctx_bench.errors import UserError, near_miss
from longctx_bench.files import plain_name, safe_name
from longctx_bench.records import length_name

if TYPE_CHECKING:
    from longctx_bench.reporting.comparison import Comparison
    from longctx_bench.reporting.summaries import CellSummary


@click.command("compare")
@click.argument("a")
@click.argument("b")
@click.argument("folder", default="results", type=click.Path(path_type=Path, file_okay=False))
@click.option("--tasks", help="The tasks to compare, with commas; all by default.")
@click.option("--scale", help="The multiples of the training context to compare, with commas, such as 2x,4x.")
@click.option("--length", help="The lengths in tokens to compare, with commas, such as 4k or natural.")
@format_option
@out_option
def compare_command(
    a: str, b: str, folder: Path, tasks: str | None, scale: str | None, length: str | None, form: str, out: Path | None
) -> None:
    """Compare two contestants of a run's FOLDER, such as yarn-tiny and drope-tiny, on identical examples.

    Each cell: difference with its 95 % interval, exact McNemar or permutation test, Holm correction over the table,
    examples won, tied and lost. Examples without an identical counterpart are left out and named on standard error.
    """
    from longctx_bench.reporting.comparison import compare
    from longctx_bench.reporting.summaries import read_cells

    results = read_cells(folder)
    require_finished(results, folder)
    known = {summary.contestant for summary in results.finished}
    for name in (a, b):
        if name not in known:
            raise UserError(f"{folder}: no finished cell of '{name}'{near_miss(name, known)}")
    cells = [s for name in (a, b) for s in _chosen(name, results.finished, tasks, scale, length)]
    comparison = compare(cells, a, b)
    form = format_of(form, out)
    _show(comparison, form, out)
    for line in comparison.refused:
        say(f"left out: {line}", err=True)
    folders = {f"{name(s.cell.model)}/{name(s.cell.method)}/" for s in cells for name in (safe_name, plain_name)}
    for line in results.missing:
        if line.startswith(tuple(folders)):
            say(f"missing: {line}", err=True)


def _show(comparison: Comparison, form: str, out: Path | None) -> None:
    from longctx_bench.reporting.comparison_tables import comparison_tables, exact_table
    from longctx_bench.reporting.rendering import FORMATS, print_tables

    if form == "terminal":
        print_tables(comparison_tables(comparison))
        return
    tables = [exact_table(comparison)] if form in {"csv", "json"} else comparison_tables(comparison)
    put(FORMATS[form](tables), out)


def _chosen(
    name: str, cells: Sequence[CellSummary], tasks: str | None, scale: str | None, length: str | None
) -> list[CellSummary]:
    """Return the cells of a contestant that the options leave.

    Raises:
        UserError: an option is malformed, or no cell is left.
    """
    own = [summary for summary in cells if summary.contestant == name]
    wanted = parts(tasks)
    for task in wanted:
        known = {summary.cell.task for summary in own}
        if task not in known:
            raise UserError(f"--tasks {task}: not measured for {name}{near_miss(task, known)}")
    scales, lengths = parse_scales(scale), parse_lengths(length)
    chosen = [
        s
        for s in own
        if (not wanted or s.cell.task in wanted)
        and (not (scales or lengths) or s.scale in scales or s.cell.length in lengths)
    ]
    if not chosen:
        measured = ", ".join(length_name(found) for found in sorted({s.cell.length for s in own}))
        raise UserError(f"{name}: no finished cell at that --scale or --length; measured at {measured} tokens")
    return chosen
