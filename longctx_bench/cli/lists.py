"""``longctx-bench list``: what there is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from longctx_bench.cli.options import make_registry, registry_options
from longctx_bench.cli.output import say
from longctx_bench.plain import plain


@click.group("list")
def list_group() -> None:
    """List tasks, models, methods or results."""


@list_group.command("tasks")
@registry_options
def tasks_command(**options: tuple[str, ...]) -> None:
    """List the tasks and groups."""
    registry = make_registry(**options)  # type: ignore[arg-type]
    rows = [
        (spec.name, spec.protocol, spec.metric, str(spec.max_new_tokens), str(spec.samples), spec.description)
        for spec in registry.tasks.values()
    ]
    _print(("task", "protocol", "metric", "new tokens", "examples", "description"), rows)
    _print(("group", "tasks"), [(name, ", ".join(members)) for name, members in registry.groups.items()])
    _print(
        ("data source", "licence", "description"),
        [(name, spec.licence, spec.description) for name, spec in registry.sources.items()],
    )


@list_group.command("models")
@registry_options
def models_command(**options: tuple[str, ...]) -> None:
    """List the base models; any hub id or folder works as METHOD:ID."""
    from longctx_bench.data import describe

    registry = make_registry(**options)  # type: ignore[arg-type]
    rows = [
        (
            spec.name,
            f"{spec.original_length:,}",
            spec.licence,
            ", ".join(spec.checkpoints),
            describe(spec.source),
            spec.description,
        )
        for spec in registry.models.values()
    ]
    _print(("model", "context", "licence", "own checkpoints", "source", "description"), rows)


@list_group.command("methods")
@registry_options
def methods_command(**options: tuple[str, ...]) -> None:
    """List the context-extension methods; METHOD-BASE names a contestant."""
    registry = make_registry(**options)  # type: ignore[arg-type]
    _print(("method", "description", "paper"), [(s.name, s.description, s.paper) for s in registry.methods.values()])


@list_group.command("results")
@click.argument("folder", default="results", type=click.Path(path_type=Path))
def results_command(folder: Path) -> None:
    """List the cells of a run's FOLDER."""
    from longctx_bench.reporting.summaries import read_cells

    results = read_cells(folder)
    rows = [
        (str(s.cell), f"{100 * s.score:.1f}", str(s.n), s.details["spec"]["dtype"], s.details["finished"])
        for s in results.finished
    ]
    _print(("cell", "score (%)", "examples", "dtype", "finished"), rows)
    for line in results.missing:
        say(f"missing: {line}")


def _print(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for place, heading in enumerate(header):
        table.add_column(heading, no_wrap=place == 0, overflow="fold")
    for row in rows:
        table.add_row(*(escape(plain(text)) for text in row))
    console = Console()
    console.print(table)
    console.print()
