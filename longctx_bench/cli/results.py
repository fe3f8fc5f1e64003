"""Commands that read results: ``report``, ``show`` and ``score``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from longctx_bench.cli.options import make_registry, registry_options
from longctx_bench.cli.output import format_of, format_option, out_option, put, require_finished, say
from longctx_bench.errors import UserError

if TYPE_CHECKING:
    from longctx_bench.reporting.summaries import Results

_NOTHING = {
    "tasks": "no two tasks were measured at one length",
    "summary": "nothing to sum up: no task was measured in per cent, or beside rope at the training context",
}
"""Why a kind of table may be empty."""
_FOLDER = click.argument("folder", default="results", type=click.Path(path_type=Path, file_okay=False))


@click.command("report")
@_FOLDER
@format_option
@click.option(
    "--table",
    "kind",
    metavar="KIND",
    help="Which tables: lengths (scores by length, the default), tasks, summary (reach, retention and position bias), "
    "cost, all, or one that an installed package brings. "
    "With html, plain tables in place of the page.",
)
@out_option
@click.option(
    "--examples",
    type=click.IntRange(min=0),
    help="Examples of each cell in an html page; by default as many as keep it below about 30 MB.",
)
def report_command(folder: Path, form: str, kind: str | None, out: Path | None, examples: int | None) -> None:
    """Print the comparison tables of a run's FOLDER."""
    from longctx_bench.reporting.rendering import FORMATS, print_tables
    from longctx_bench.reporting.report_tables import report_tables
    from longctx_bench.reporting.summaries import read_cells

    form = format_of(form, out)
    if examples is not None and form != "html":
        raise UserError("--examples goes with --format html: the other formats hold tables only")
    page = form == "html" and kind is None
    if examples is not None and not page:
        raise UserError("--examples goes with the page, not with --table")
    results = read_cells(folder)
    if page:
        put(_page(folder, results, examples), out)
    else:
        require_finished(results, folder)
        kind = kind or "lengths"
        tables = report_tables(results.finished, kind)
        if not tables:
            raise UserError(f"{folder}: {_NOTHING[kind]}; `--table lengths` shows what there is")
        if form == "terminal":
            print_tables(tables)
        else:
            put(FORMATS[form](tables), out)
    for line in results.missing:
        say(f"missing: {line}", err=True)


def _page(folder: Path, results: Results, examples: int | None) -> str:
    from longctx_bench.reporting.page import html_page
    from longctx_bench.store.run_store import ResultStore

    return html_page(results, ResultStore(folder), examples)


@click.command("show")
@click.argument("cell")
@click.argument("example", required=False)
@click.option("--out", default="results", show_default=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--beside", metavar="MODEL", help="Also what this one made of the same example, such as drope-tiny.")
@registry_options
def show_command(cell: str, example: str | None, out: Path, beside: str | None, **options: tuple[str, ...]) -> None:
    """Show one EXAMPLE (the first by default) of a CELL such as yarn-smollm2-135m/niah/8192.

    The prompt's ends are what the run kept of it; where it kept nothing, the prompt is written again from the cell's
    spec and checked against the stored hash.
    """
    from longctx_bench.replay import replay

    put(replay(out, cell, example, make_registry(**options), beside) + "\n", None)  # type: ignore[arg-type]


@click.command("score")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    default="examples",
    show_default=True,
    type=click.Choice(["examples", "longbench", "longbench-e", "ruler"]),
    help="What FILE is; the last three are folders as those benchmarks' own scripts write them.",
)
@click.option("--task", help="The task of all lines; without it each line names its own under 'task'.")
@click.option("--json", "as_json", is_flag=True, help="Print {task: score x 100}, unrounded.")
@registry_options
def score_command(file: Path, form: str, task: str | None, as_json: bool, **options: tuple[str, ...]) -> None:
    """Score generations that something else made.

    FILE holds JSON lines as `longctx-bench examples` writes them, each with a key 'prediction' added; or it is a
    folder of LongBench's (pred/MODEL) or RULER's prediction files, with --format.
    """
    registry = make_registry(**options)  # type: ignore[arg-type]
    if form != "examples" and task is not None:
        raise UserError(f"--task goes with --format examples; with {form} the files' names are the tasks")
    if form == "examples":
        from longctx_bench.scoring import score_file

        scores = score_file(file, task, registry)
    else:
        from longctx_bench.scoring_upstream import score_folder

        scores = score_folder(file, form, registry)
    if as_json:
        click.echo(json.dumps({name: 100 * mean for name, (mean, _) in scores.items()}))
        return
    for name, (mean, n) in scores.items():
        say(f"{name}: {100 * mean:.2f} % (n = {n})")
