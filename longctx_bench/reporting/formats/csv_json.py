"""CSV and JSON output: one line or object per cell, unrounded."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence

from longctx_bench.reporting.tables.base import Table

_CELL = ("model", "method", "task", "length")
"""Records that agree in these columns belong to one cell and are merged into one line."""
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Characters that start a formula in spreadsheets (OWASP, CSV injection), with their full-width forms."""
_NUMBER = re.compile(r"[-+]?(\d[\d,]*(\.\d+)?(e[-+]?\d+)?|inf|nan)( ?%)?( ?\[[-+\d.,einfa ]+\])?( ?[†*])?")
"""A number as tables show it, with interval and mark."""


def csv_text(tables: Sequence[Table]) -> str:
    """Return the tables' records as CSV; a table without records gives its formatted rows.

    Columns are in order of first appearance; missing values are empty.
    """
    return csv_of(_records(tables))


def json_text(tables: Sequence[Table]) -> str:
    """Return the tables' records as a JSON array of objects; missing and non-finite values are null."""
    return json_of(_records(tables))


def csv_of(records: Sequence[Mapping[str, object]]) -> str:
    """Return records as CSV with a header; columns in order of first appearance."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(_inert, columns))
    writer.writerows([_inert(record.get(name, "")) for name in columns] for record in records)
    return buffer.getvalue()


def json_of(records: Sequence[Mapping[str, object]]) -> str:
    """Return records as a JSON array of objects that all have the same keys."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    rows = [{name: _json(record.get(name)) for name in columns} for record in records]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _records(tables: Sequence[Table]) -> list[dict[str, object]]:
    lines: dict[object, dict[str, object]] = {}
    for table in tables:
        for record in table.records or _rows(table, several=len(tables) > 1):
            key = tuple(record[name] for name in _CELL) if set(_CELL) <= set(record) else len(lines)
            lines.setdefault(key, {}).update(record)
    return list(lines.values())


def _json(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _inert(value: object) -> object:
    """Return a value that no spreadsheet executes: text that looks like a formula gets a leading apostrophe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    if not isinstance(value, str):
        return value
    # Spreadsheets end a line at a carriage return, and the csv module of Python 3.11 does not quote it.
    text = value.replace("\r", " ")
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text.strip()) else text


def _rows(table: Table, several: bool) -> Iterator[Mapping[str, object]]:
    """Yield the rows as mappings by heading, with the table's name where there are several tables."""
    name = {"table": table.title.partition(": ")[0]} if several else {}
    for row in table.rows:
        yield name | dict(zip(table.header, map(str, row), strict=True))
