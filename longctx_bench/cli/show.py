"""``longctx-bench show``: one example of a cell."""

from __future__ import annotations

from pathlib import Path

import click

from longctx_bench.cli.options import make_registry, registry_options
from longctx_bench.cli.output import put


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
    from longctx_bench.reporting.show_example import show_example

    put(show_example(out, cell, example, make_registry(**options), beside) + "\n", None)  # type: ignore[arg-type]
