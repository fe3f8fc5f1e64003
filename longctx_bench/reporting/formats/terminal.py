"""The terminal: bold for the best, underlined what is not significantly worse; signs where there are no styles."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from longctx_bench.core.sanitize import single_line
from longctx_bench.reporting.tables.base import Entry, Mark, Table

_HEADING = 24
"""Characters of a heading's word that stay together in a narrow terminal."""


def print_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print the tables, each below its title.

    A terminal that is too narrow for a table gets it in parts, one below the other, each with the columns that name the
    rows. A file or a pipe has no edge: a row stays one line there.

    Args:
        tables: in their order.
        console: where to; standard output when None.
    """
    if console is None:
        console = Console() if sys.stdout.isatty() else _pipe(tables)
    styled = console.color_system is not None
    for place, table in enumerate(tables):
        if place:
            console.print()
        console.print(Text(single_line(table.title), style="italic"), soft_wrap=True)
        for part in _folded(table, console.width):
            _print_part(part, console, styled)
        words = ("bold", "underlined") if styled else ("*", "†")
        for note in (*table.legend(*words), *table.notes):
            console.print(Text(single_line(note)), style="dim", soft_wrap=True)


def _pipe(tables: Sequence[Table]) -> Console:
    """Return a console for what is no terminal: wide enough for every row, without colours."""
    return Console(width=max(map(_width, tables), default=1), no_color=True, force_terminal=False, color_system=None)


def _print_part(table: Table, console: Console, styled: bool) -> None:
    # An interval that must break does so before its bracket.
    between = " " if _width(table) <= console.width else "\n"
    shown = RichTable()
    widths = _widths(table, console.width, between)
    for place, (heading, width) in enumerate(zip(table.header, widths, strict=True)):
        justify: Literal["left", "right"] = "left" if place == 0 else "right"
        shown.add_column(Text(single_line(heading)), justify=justify, no_wrap=place == 0, overflow="fold", width=width)
    for row in table.rows:
        shown.add_row(*(_shown(entry, styled, between) for entry in row))
    # A column that is wider than the terminal at its narrowest runs over its edge, whole numbers and all.
    console.print(shown, width=max(console.width, _total(widths)), crop=False)


def _widths(table: Table, most: int, between: str) -> list[int]:
    """Return each column's width: at least what must not break, then what room there is, shared evenly."""
    widths = _unbroken(table)
    columns = zip(table.header, *table.rows, strict=True)
    wanted = [max(_longest_line(entry, between) for entry in column) for column in columns]
    room = most - _total(widths)
    while room > 0 and (narrow := [place for place, width in enumerate(widths) if width < wanted[place]]):
        for place in narrow[:room]:
            widths[place] += 1
        room -= len(narrow)
    return widths


def _longest_line(entry: str | Entry, between: str) -> int:
    if isinstance(entry, str):
        return len(single_line(entry))
    parts = [f"{single_line(entry.text)}{_sign(entry)}", *([single_line(entry.detail)] if entry.detail else [])]
    return max(map(len, between.join(parts).split("\n")))


def _folded(table: Table, width: int) -> list[Table]:
    """Return the table in parts that fit a width, each with the columns that name the rows; one part where it fits."""
    widths = _unbroken(table)
    if _total(widths) <= width:
        return [table]
    keys = list(range(table.keys))
    parts: list[list[int]] = [[]]
    for column in range(table.keys, len(widths)):
        if parts[-1] and _total([widths[place] for place in (*keys, *parts[-1], column)]) > width:
            parts.append([])
        parts[-1].append(column)
    return [_columns(table, [*keys, *part]) for part in parts]


def _columns(table: Table, places: Sequence[int]) -> Table:
    rows = tuple(tuple(row[place] for place in places) for row in table.rows)
    return replace(table, header=tuple(table.header[place] for place in places), rows=rows)


def _total(widths: Sequence[int]) -> int:
    """Return how many columns of the terminal a table's columns take, with the lines between them."""
    return 1 + sum(3 + width for width in widths)


def _width(table: Table) -> int:
    """Return how many columns of the terminal a table takes that nothing breaks."""
    columns = zip(table.header, *table.rows, strict=True)
    return _total([max(len(single_line(str(entry))) + len(_sign(entry)) for entry in column) for column in columns])


def _unbroken(table: Table) -> list[int]:
    """Return how wide each column must be for no number, no name of a row and no short word of a heading to break."""
    rows = list(zip(*table.rows, strict=True)) or [()] * len(table.header)
    return [
        max(
            *(min(len(word), _HEADING) for word in single_line(heading).split(" ")),
            *(len(part) for entry in column for part in _parts(entry, whole=place == 0)),
            1,
        )
        for place, (heading, column) in enumerate(zip(table.header, rows, strict=True))
    ]


def _parts(entry: str | Entry, whole: bool) -> list[str]:
    """Return what of an entry may stand in lines of its own: its words, or where ``whole`` all of it together."""
    text = f"{single_line(str(entry))}{_sign(entry)}"
    return [text] if whole else text.split(" ")


def _sign(entry: str | Entry) -> str:
    return {Mark.BEST: "*", Mark.CLOSE: "†"}.get(entry.mark, "") if isinstance(entry, Entry) else ""


def _shown(entry: str | Entry, styled: bool, between: str) -> Text:
    if isinstance(entry, str):
        return Text(single_line(entry))
    style = {Mark.BEST: "bold", Mark.CLOSE: "underline"}.get(entry.mark, "")
    text = Text.assemble((single_line(entry.text), style)) if styled else Text(single_line(entry.text) + _sign(entry))
    return text.append(f"{between}{single_line(entry.detail)}", style="dim") if entry.detail else text
