"""``longctx-bench score``: score generations of other software."""

from __future__ import annotations

import json
from pathlib import Path

import click

from longctx_bench.cli.options import make_registry, registry_options
from longctx_bench.cli.output import say
from longctx_bench.core.errors import UserError


@click.command("score")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    default="examples",
    show_default=True,
    type=click.Choice(["examples", "longbench", "longbench-e", "ruler"]),
    help="Format of FILE; all but examples are folders written by those benchmarks' own scripts.",
)
@click.option("--task", help="Task of all lines (default: each line's 'task').")
@click.option("--json", "as_json", is_flag=True, help="Print {task: score x 100} as JSON, unrounded.")
@registry_options
def score_command(file: Path, form: str, task: str | None, as_json: bool, **options: tuple[str, ...]) -> None:
    """Score generations produced by other software.

    FILE has the JSON lines of `longctx-bench examples` with a 'prediction' added to each. With --format, it is a folder
    of prediction files written by LongBench (pred/MODEL) or RULER.
    """
    registry = make_registry(**options)  # type: ignore[arg-type]
    if form != "examples" and task is not None:
        raise UserError(f"--task goes with --format examples; with {form} the files' names are the tasks")
    if form == "examples":
        from longctx_bench.runner.score_predictions import score_file

        scores = score_file(file, task, registry)
    else:
        from longctx_bench.runner.score_upstream_files import score_folder

        scores = score_folder(file, form, registry)
    if as_json:
        click.echo(json.dumps({name: 100 * mean for name, (mean, _) in scores.items()}))
        return
    for name, (mean, n) in scores.items():
        say(f"{name}: {100 * mean:.2f} % (n = {n})")
