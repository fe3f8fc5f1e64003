"""Terminal output: bold for the best entries, underlined for those not significantly worse; signs without styles."""

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

_MAX_HEADING_WORD = 24
"""Longest part of a heading's word, in characters, that is not broken in a narrow terminal."""


def print_tables(tables: Sequence[Table], console: Console | None = None) -> None:
    """Print the tables, each below its title.

    A table too wide for the terminal is split into parts, each with the columns that name the rows. In a file or pipe
    a row stays on one line.

    Args:
        tables: tables in output order.
        console: output console; standard output when None.
    """
    if console is None:
        console = Console() if sys.stdout.isatty() else _pipe_console(tables)
    styled = console.color_system is not None
    for index, table in enumerate(tables):
        if index:
            console.print()
        console.print(Text(single_line(table.title), style="italic"), soft_wrap=True)
        for part in _split(table, console.width):
            _print_part(part, console, styled)
        marks = ("bold", "underlined") if styled else ("*", "†")
        for note in (*table.legend(*marks), *table.notes):
            console.print(Text(single_line(note)), style="dim", soft_wrap=True)


def _pipe_console(tables: Sequence[Table]) -> Console:
    """Return a console for files and pipes: wide enough for every row, without colours."""
    return Console(width=max(map(_width, tables), default=1), no_color=True, force_terminal=False, color_system=None)


def _print_part(table: Table, console: Console, styled: bool) -> None:
    # Where an entry must break, it breaks before the interval's bracket.
    separator = " " if _width(table) <= console.width else "\n"
    shown = RichTable()
    widths = _widths(table, console.width, separator)
    for index, (heading, width) in enumerate(zip(table.header, widths, strict=True)):
        justify: Literal["left", "right"] = "left" if index == 0 else "right"
        shown.add_column(Text(single_line(heading)), justify=justify, no_wrap=index == 0, overflow="fold", width=width)
    for row in table.rows:
        shown.add_row(*(_shown(entry, styled, separator) for entry in row))
    # A column that cannot be narrow enough overflows the terminal rather than being cropped.
    console.print(shown, width=max(console.width, _total(widths)), crop=False)


def _widths(table: Table, max_width: int, separator: str) -> list[int]:
    """Return each column's width: its minimum plus an even share of the remaining space."""
    widths = _min_widths(table)
    columns = zip(table.header, *table.rows, strict=True)
    full_widths = [max(_longest_line(entry, separator) for entry in column) for column in columns]
    space = max_width - _total(widths)
    while space > 0 and (narrow := [index for index, width in enumerate(widths) if width < full_widths[index]]):
        for index in narrow[:space]:
            widths[index] += 1
        space -= len(narrow)
    return widths


def _longest_line(entry: str | Entry, separator: str) -> int:
    if isinstance(entry, str):
        return len(single_line(entry))
    parts = [f"{single_line(entry.text)}{_sign(entry)}", *([single_line(entry.detail)] if entry.detail else [])]
    return max(map(len, separator.join(parts).split("\n")))


def _split(table: Table, width: int) -> list[Table]:
    """Split a table into parts that fit a width, each with the columns that name the rows."""
    widths = _min_widths(table)
    if _total(widths) <= width:
        return [table]
    keys = list(range(table.keys))
    parts: list[list[int]] = [[]]
    for column in range(table.keys, len(widths)):
        if parts[-1] and _total([widths[index] for index in (*keys, *parts[-1], column)]) > width:
            parts.append([])
        parts[-1].append(column)
    return [_columns(table, [*keys, *part]) for part in parts]


def _columns(table: Table, indices: Sequence[int]) -> Table:
    rows = tuple(tuple(row[index] for index in indices) for row in table.rows)
    return replace(table, header=tuple(table.header[index] for index in indices), rows=rows)


def _total(widths: Sequence[int]) -> int:
    """Return the width of a table in characters, with borders and padding."""
    return 1 + sum(3 + width for width in widths)


def _width(table: Table) -> int:
    """Return the width in characters of a table without any line break."""
    columns = zip(table.header, *table.rows, strict=True)
    return _total([max(len(single_line(str(entry))) + len(_sign(entry)) for entry in column) for column in columns])


def _min_widths(table: Table) -> list[int]:
    """Return the minimum width of each column at which no number, row name or short heading word breaks."""
    rows = list(zip(*table.rows, strict=True)) or [()] * len(table.header)
    return [
        max(
            *(min(len(word), _MAX_HEADING_WORD) for word in single_line(heading).split(" ")),
            *(len(part) for entry in column for part in _parts(entry, whole=index == 0)),
            1,
        )
        for index, (heading, column) in enumerate(zip(table.header, rows, strict=True))
    ]


def _parts(entry: str | Entry, whole: bool) -> list[str]:
    """Return the parts of an entry that may be on separate lines: its words, or with ``whole`` all of it."""
    text = f"{single_line(str(entry))}{_sign(entry)}"
    return [text] if whole else text.split(" ")


def _sign(entry: str | Entry) -> str:
    return {Mark.BEST: "*", Mark.CLOSE: "†"}.get(entry.mark, "") if isinstance(entry, Entry) else ""


def _shown(entry: str | Entry, styled: bool, separator: str) -> Text:
    if isinstance(entry, str):
        return Text(single_line(entry))
    style = {Mark.BEST: "bold", Mark.CLOSE: "underline"}.get(entry.mark, "")
    text = Text.assemble((single_line(entry.text), style)) if styled else Text(single_line(entry.text) + _sign(entry))
    return text.append(f"{separator}{single_line(entry.detail)}", style="dim") if entry.detail else text
