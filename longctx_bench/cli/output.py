"""What the commands print: lines and tables, to the terminal or to a file whose ending names the format."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from longctx_bench.cli.options import writable
from longctx_bench.errors import UserError
from longctx_bench.files import write_text
from longctx_bench.plain import plain, printable

if TYPE_CHECKING:
    from longctx_bench.reporting.summaries import Results

_BY_ENDING = {".tex": "latex", ".csv": "csv", ".html": "html", ".htm": "html"}

format_option = click.option(
    "--format",
    "form",
    default="terminal",
    show_default=True,
    type=click.Choice(["terminal", "md", "latex", "csv", "html"]),
    help="How the tables are written.",
)
out_option = click.option(
    "--out", type=click.Path(path_type=Path), callback=writable, help="The file to write instead of the terminal."
)


def say(line: str, err: bool = False) -> None:
    """Print one line, without what a terminal would take for a command: names and reasons may be anybody's."""
    click.echo(plain(line), err=err)


def format_of(form: str, out: Path | None) -> str:
    """Return the format to write: the one asked for, or that of the file's ending (Markdown where it says nothing)."""
    if form != "terminal" or out is None:
        return form
    return _BY_ENDING.get(out.suffix.lower(), "md")


def require_finished(results: Results, folder: Path) -> None:
    """Name what is missing where nothing is finished.

    Raises:
        UserError: no cell is finished.
    """
    if results.finished:
        return
    for line in results.missing:
        say(f"missing: {line}", err=True)
    raise UserError(
        f"{folder}: no cell is finished yet, of {len(results.missing)}; the same run command completes them"
    )


def put(text: str, out: Path | None) -> None:
    """Print a text, its lines as they are, or write it to a file and say so.

    Raises:
        UserError: the file cannot be written.
    """
    if out is None:
        click.echo(printable(text) if sys.stdout.isatty() else text, nl=False)
    else:
        write_text(out, text)
        say(f"wrote {out}")
