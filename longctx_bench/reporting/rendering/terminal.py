"""The terminal: bold for the best, underlined what is not significantly worse; signs where there are no styles."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from longctx_bench.plain import plain
from longctx_bench.reporting.tables import Entry, Mark, Table

_WIDE = 1_000
"""Columns of what is no terminal: a file has no edge at which a table must break."""


def print_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print the tables.

    Args:
        tables: in their order.
        console: where to; standard output when None.
    """
    if console is None:
        console = Console()
        if not console.is_terminal and "COLUMNS" not in os.environ:
            console = Console(width=_WIDE)
    styled = console.color_system is not None
    for place, table in enumerate(tables):
        if place:
            console.print()
        shown = RichTable(title=Text(plain(table.title)), title_justify="left")
        widths = _unbroken(table)
        for column, heading in enumerate(table.header):
            shown.add_column(
                Text(plain(heading)), justify="left" if column == 0 else "right", no_wrap=column == 0, overflow="fold",
                min_width=widths[column],
            )  # fmt: skip
        # An interval that must break does so before its bracket.
        between = " " if _width(table) <= console.width else "\n"
        for row in table.rows:
            shown.add_row(*(_shown(entry, styled, between) for entry in row))
        # A table that is wider than the terminal at its narrowest runs over its edge, whole numbers and all.
        console.print(shown, width=max(console.width, 1 + sum(3 + width for width in widths)), crop=False)
        words = ("bold", "underlined") if styled else ("*", "†")
        for note in (*table.legend(*words), *table.notes):
            console.print(Text(plain(note)), style="dim", soft_wrap=True)


def _width(table: Table) -> int:
    """Return how many columns of the terminal a table takes that nothing breaks."""
    columns = zip(table.header, *table.rows, strict=True)
    return 1 + sum(3 + max(len(str(entry)) + len(_sign(entry)) for entry in column) for column in columns)


def _unbroken(table: Table) -> list[int]:
    """Return how wide each column must be for no number and no name of a row to break."""
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.header)
    return [
        max((len(part) for entry in column for part in f"{plain(str(entry))}{_sign(entry)}".split(" ")), default=1)
        for column in columns
    ]


def _sign(entry: str | Entry) -> str:
    return {Mark.BEST: "*", Mark.CLOSE: "†"}.get(entry.mark, "") if isinstance(entry, Entry) else ""


def _shown(entry: str | Entry, styled: bool, between: str) -> Text:
    if isinstance(entry, str):
        return Text(plain(entry))
    style = {Mark.BEST: "bold", Mark.CLOSE: "underline"}.get(entry.mark, "")
    text = Text.assemble((plain(entry.text), style)) if styled else Text(plain(entry.text) + _sign(entry))
    return text.append(f"{between}{plain(entry.detail)}", style="dim") if entry.detail else text
