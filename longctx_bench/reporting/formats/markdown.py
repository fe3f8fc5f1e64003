"""GitHub-flavoured Markdown output: bold for the best entries, a dagger for those not significantly worse."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from longctx_bench.core.sanitize import single_line
from longctx_bench.reporting.tables.base import Entry, Mark, Table

_SPECIAL = re.compile(
    r"[\\`*~|$]"  # start a span or the next cell
    r"|(?<!\w)_|_(?!\w)"  # an underscore inside a word is text
    r"|\](?=[(\[:])"  # a link
)
_HTML = re.compile(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)")


def markdown(tables: Sequence[Table]) -> str:
    """Return the tables, each with its title in bold above and its notes in italics below."""
    return "\n\n".join(map(_block, tables)) + "\n"


def _block(table: Table) -> str:
    lines = [f"**{_escaped(table.title)}**", "", _row(map(_escaped, table.header))]
    lines.append(_row(["---", *["---:"] * (len(table.header) - 1)]))
    lines += [_row(map(_shown, row)) for row in table.rows]
    notes = [f"*{_escaped(note)}*" for note in (*table.legend("bold", "†"), *table.notes)]
    # The backslash keeps consecutive notes on separate lines.
    return "\n".join([*lines, *(["", "\\\n".join(notes)] if notes else [])])


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _shown(entry: str | Entry) -> str:
    if isinstance(entry, str):
        return _escaped(entry)
    text = _escaped(entry.text)
    if entry.mark is Mark.BEST:
        text = f"**{text}**"
    elif entry.mark is Mark.CLOSE:
        text += "†"
    return f"{text} {_escaped(entry.detail)}".rstrip()


def _escaped(text: str) -> str:
    shown = _SPECIAL.sub(r"\\\g<0>", single_line(text))
    return _HTML.sub(lambda match: "&lt;" if match[0] == "<" else "&amp;", shown)
