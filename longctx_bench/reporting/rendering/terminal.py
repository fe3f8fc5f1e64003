"""The terminal: bold for the best, underlined what is not significantly worse; signs where there are no styles."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from longctx_bench.reporting.rendering.plain import plain
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
        for column, heading in enumerate(table.header):
            shown.add_column(
                Text(plain(heading)), justify="left" if column == 0 else "right", no_wrap=column == 0, overflow="fold"
            )
        for row in table.rows:
            shown.add_row(*(_shown(entry, styled) for entry in row))
        console.print(shown)
        words = ("bold", "underlined") if styled else ("*", "†")
        for note in (*table.legend(*words), *table.notes):
            console.print(Text(plain(note)), style="dim", soft_wrap=True)


def _shown(entry: str | Entry, styled: bool) -> Text:
    if isinstance(entry, str):
        return Text(plain(entry))
    style = {Mark.BEST: "bold", Mark.CLOSE: "underline"}.get(entry.mark, "") if styled else ""
    sign = {Mark.BEST: "*", Mark.CLOSE: "†"}.get(entry.mark, "") if not styled else ""
    text = Text(plain(entry.text), style="") if not style else Text.assemble((plain(entry.text), style))
    text.append(sign)
    return text.append(f" {plain(entry.detail)}", style="dim") if entry.detail else text
