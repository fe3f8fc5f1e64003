"""``longctx-bench show``: print one stored example."""

from __future__ import annotations

from pathlib import Path

import click

from longctx_bench.cli.options import make_registry, registry_options, renamed_option
from longctx_bench.cli.output import put


@click.command("show")
@click.argument("cell")
@click.argument("example", required=False)
@click.option(
    "--out", default="results", show_default=True, type=click.Path(path_type=Path), help="Results folder, or a bundle."
)
@click.option("--compare-with", metavar="MODEL", help="Also show this model's generation for the same example.")
@renamed_option("--beside", "use --compare-with", metavar="MODEL")
@registry_options
def show_command(
    cell: str, example: str | None, out: Path, compare_with: str | None, beside: str | None, **options: tuple[str, ...]
) -> None:
    """Show one EXAMPLE (the first by default) of a CELL such as yarn-smollm2-135m/niah/8192.

    Runs store the beginning and end of each prompt. Without them, the prompt is generated again from the cell's spec
    and checked against the stored hash.
    """
    from longctx_bench.reporting.show_example import show_example

    put(show_example(out, cell, example, make_registry(**options), compare_with or beside) + "\n", None)  # type: ignore[arg-type]
