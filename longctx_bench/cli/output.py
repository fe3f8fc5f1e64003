"""Output of the commands: lines and tables, to the terminal or a file whose suffix names the format."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from longctx_bench.cli.options import writable
from longctx_bench.core.errors import UserError
from longctx_bench.core.io import write_text
from longctx_bench.core.sanitize import escape_control_chars, single_line

if TYPE_CHECKING:
    from longctx_bench.reporting.results import Results

_MIN_WIDTH = 30
"""Minimum width of a wrapped column, in characters."""
_BY_SUFFIX = {".tex": "latex", ".csv": "csv", ".json": "json", ".html": "html", ".htm": "html"}

format_option = click.option(
    "--format",
    "form",
    default="terminal",
    show_default=True,
    type=click.Choice(["terminal", "md", "latex", "csv", "json", "html"]),
    help="Output format of the tables.",
)
rows_option = click.option(
    "--format",
    "form",
    default="terminal",
    show_default=True,
    type=click.Choice(["terminal", "csv", "json"]),
    help="Output format.",
)
"""For commands that print one table."""
out_option = click.option(
    "--out", type=click.Path(path_type=Path), callback=writable, help="Output file (default: the terminal)."
)


def say(line: str, err: bool = False) -> None:
    """Print one line without terminal control characters: names and reasons may come from untrusted files."""
    click.echo(single_line(line), err=err)


def format_of(form: str, out: Path | None) -> str:
    """Return the requested format, or else the one of the file's suffix (Markdown if unknown)."""
    if form != "terminal" or out is None:
        return form
    return _BY_SUFFIX.get(out.suffix.lower(), "md")


def require_finished(results: Results, folder: Path) -> None:
    """Raise if no cell has finished, after listing the unfinished ones.

    Raises:
        UserError: no cell has finished.
    """
    if results.finished:
        return
    for line in results.missing:
        say(f"missing: {line}", err=True)
    raise UserError(
        f"{folder}: no cell is finished yet, of {len(results.missing)}; the same run command completes them"
    )


def put(text: str, out: Path | None) -> None:
    """Print a text unchanged, or write it to a file and report the path.

    Raises:
        UserError: the file cannot be written.
    """
    if out is None:
        click.echo(escape_control_chars(text) if sys.stdout.isatty() else text, nl=False)
    else:
        write_text(out, text)
        say(f"wrote {out}")


def put_records(records: Sequence[Mapping[str, object]], form: str) -> None:
    """Print records as CSV or JSON.

    Args:
        records: one per CSV line or JSON object.
        form: ``csv`` or ``json``.
    """
    from longctx_bench.reporting.formats.csv_json import csv_of, json_of

    put((csv_of if form == "csv" else json_of)(records), None)


def put_list(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table without rules.

    A terminal wraps the longest column. If the other columns alone are too wide, each row becomes a block: its name,
    and below it one line per column. In a pipe, each row is one line at full width without colours, for grep.
    """
    shown = [[single_line(text) for text in row] for row in rows]
    if not sys.stdout.isatty():
        widths = [max(map(len, column)) for column in zip(header, *shown, strict=True)]
        for line in (header, *shown):
            click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console()
    widths = [max(map(len, column)) for column in zip(header, *shown, strict=True)]
    if sum(widths) + 2 * len(widths) - max(widths) + min(max(widths), _MIN_WIDTH) > console.width:
        for name, *rest in shown:
            console.print(Text(name, style="bold"))
            for heading, text in zip(header[1:], rest, strict=True):
                if text:
                    console.print(Padding(Text.assemble((f"{heading}: ", "dim"), text), (0, 0, 0, 2)))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, heading in enumerate(header):
        table.add_column(heading, no_wrap=index == 0, overflow="fold")
    for row in shown:
        table.add_row(*map(Text, row))
    console.print(table)


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: ``40 s``, ``25 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
