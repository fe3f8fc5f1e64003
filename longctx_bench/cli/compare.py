"""``longctx-bench compare``: paired comparison of models on identical examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from longctx_bench.cli.options import parse_lengths, parse_scales, split_commas
from longctx_bench.cli.output import format_of, format_option, out_option, put, require_finished, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longctx_bench.reporting.comparison import Comparison


@click.command("compare")
@click.argument("a")
@click.argument("b")
@click.argument("folder", default="results", type=click.Path(path_type=Path))
@click.option("--tasks", help="Comma-separated tasks (default: all).")
@click.option("--scale", help="Lengths as multiples of the training context, e.g. 2x,4x (default: all).")
@click.option("--length", help="Lengths in tokens, e.g. 4k, or natural (default: all).")
@format_option
@out_option
def compare_command(
    a: str, b: str, folder: Path, tasks: str | None, scale: str | None, length: str | None, form: str, out: Path | None
) -> None:
    """Compare two models of a run's FOLDER or bundle, e.g. yarn-tiny and drope-tiny, on identical examples.

    Per cell: difference with its 95 % confidence interval, exact McNemar or permutation test with Holm correction over
    the table, and wins, ties and losses. Examples whose prompts differ are excluded and reported on standard error.

    A may be several models, comma-separated, or `all`: a table per task then has their differences from B, each table
    with a correction of its own.
    """
    from longctx_bench.reporting.comparison import lines_left_out
    from longctx_bench.reporting.comparison_selection import compare_several
    from longctx_bench.reporting.results import read_cells

    results = read_cells(folder)
    require_finished(results, folder)
    comparisons, missing = compare_several(
        results, folder, split_commas(a), b, split_commas(tasks), parse_scales(scale), parse_lengths(length)
    )
    _show(comparisons, format_of(form, out), out)
    for line in lines_left_out(comparisons):
        say(f"left out: {line}", err=True)
    for line in missing:
        say(f"missing: {line}", err=True)


def _show(comparisons: Sequence[Comparison], form: str, out: Path | None) -> None:
    from longctx_bench.reporting.formats import FORMATS, print_tables
    from longctx_bench.reporting.tables.comparison_tables import comparison_tables, exact_table

    if form == "terminal":
        print_tables(comparison_tables(comparisons))
        return
    tables = [exact_table(comparisons)] if form in {"csv", "json"} else comparison_tables(comparisons)
    put(FORMATS[form](tables), out)
