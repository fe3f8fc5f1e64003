"""CSV for programs: one line a cell, unrounded."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence

from longctx_bench.reporting.tables import Table

_CELL = ("model", "method", "task", "length")
"""Records that agree in these are about one cell, and become one line."""
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What spreadsheets take for the beginning of a formula (OWASP, CSV injection); some the wide forms, too."""
_NUMBER = re.compile(r"[-+]?(\d[\d,]*(\.\d+)?(e[-+]?\d+)?|inf|nan)( ?%)?( ?\[[-+\d.,einfa ]+\])?( ?[†*])?")
"""As tables show one: with its interval and its mark."""


def csv_text(tables: Sequence[Table]) -> str:
    """Return the tables' records; a table that has none gives its rows as they are shown.

    Columns stand in the order in which they first appear; what a line has no value for is empty.
    """
    lines: dict[object, dict[str, object]] = {}
    for table in tables:
        for record in table.records or _rows(table, several=len(tables) > 1):
            key = tuple(record[name] for name in _CELL) if set(_CELL) <= set(record) else len(lines)
            lines.setdefault(key, {}).update(record)
    columns = list(dict.fromkeys(name for line in lines.values() for name in line))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_inert, columns))
    writer.writerows([_inert(line.get(name, "")) for name in columns] for line in lines.values())
    return buffer.getvalue()


def _inert(value: object) -> object:
    """Return a value that no spreadsheet runs: text that begins like a formula gets an apostrophe, numbers none."""
    if not isinstance(value, str):
        return value
    # A carriage return ends a line for spreadsheets, and the csv module of Python 3.11 does not quote it.
    text = value.replace("\r", " ")
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text.strip()) else text


def _rows(table: Table, several: bool) -> Iterator[Mapping[str, object]]:
    """Yield the rows with their headings; beside other tables each says which it belongs to."""
    name = {"table": table.title.partition(": ")[0]} if several else {}
    for row in table.rows:
        yield name | dict(zip(table.header, map(str, row), strict=True))
