"""``longctx-bench report``: tables and html page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from longctx_bench.cli.output import format_of, format_option, out_option, put, require_finished, say
from longctx_bench.core.errors import UserError

if TYPE_CHECKING:
    from longctx_bench.reporting.results import Results
    from longctx_bench.store.run_store import ResultStore

_NOTHING = {
    "tasks": "no two tasks were measured at one length",
    "price": "no method was measured beside rope at the training context, on the same prompts",
    "summary": "nothing to sum up: no task was measured in per cent, or beside rope at the training context",
}
"""Why a kind of table, or a column, may be empty."""
_FOLDER = click.argument("folder", default="results", type=click.Path(path_type=Path))


@click.command("report")
@_FOLDER
@format_option
@click.option(
    "--table",
    "kind",
    metavar="KIND",
    help="Tables to print: lengths (scores by length, the default), tasks, summary (effective length, retention and "
    "position bias), cost, all, or one from an installed package. With --format html, plain tables, not the page.",
)
@click.option(
    "--column",
    type=click.Choice(["price"]),
    help="Add a column to the scores by length: price (score at 1x minus the untouched base's).",
)
@out_option
@click.option(
    "--examples",
    type=click.IntRange(min=0),
    help="Examples per cell in the html page (default: as many as fit in about 30 MB).",
)
def report_command(
    folder: Path, form: str, kind: str | None, column: str | None, out: Path | None, examples: int | None
) -> None:
    """Print the result tables of a run's FOLDER, or of a bundle."""
    from longctx_bench.reporting.formats import FORMATS, print_tables
    from longctx_bench.reporting.results import read_store
    from longctx_bench.reporting.tables.registry import report_tables
    from longctx_bench.store.bundle import open_store

    form = format_of(form, out)
    if column is not None and (kind or "lengths") != "lengths":
        raise UserError(f"--column {column}: goes with the scores by length, not with --table {kind}")
    kind = "lengths" if column is not None else kind
    if examples is not None and form != "html":
        raise UserError("--examples goes with --format html: the other formats hold tables only")
    page = form == "html" and kind is None
    if examples is not None and not page:
        raise UserError("--examples goes with the page, not with --table")
    store = open_store(folder)
    results = read_store(store)
    if page:
        put(_page(store, results, examples), out)
    else:
        require_finished(results, folder)
        kind = kind or "lengths"
        tables = report_tables(results.finished, kind, price=column == "price")
        if not tables or (column and not any(column in record for table in tables for record in table.records)):
            raise UserError(f"{folder}: {_NOTHING[column or kind]}; `--table lengths` shows what there is")
        if form == "terminal":
            print_tables(tables)
        else:
            put(FORMATS[form](tables), out)
    for line in results.missing:
        say(f"missing: {line}", err=True)


def _page(store: ResultStore, results: Results, examples: int | None) -> str:
    from longctx_bench.reporting.html import html_page

    return html_page(results, store, examples)
