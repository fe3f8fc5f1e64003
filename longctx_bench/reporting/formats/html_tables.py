"""HTML output: bold for the best entries, underlined for those not significantly worse."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from longctx_bench.core.sanitize import single_line
from longctx_bench.reporting.tables.base import Entry, Mark, Table

_STYLE = (
    "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}h2{font-size:1em;margin-top:2em}"
    "td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:right;white-space:nowrap}"
    "th{border-color:#555}td:first-child,th:first-child{text-align:left;font-weight:normal}"
    "small{color:#555}p{margin:.3em 0;color:#333}.table{overflow-x:auto}"
)


def html_text(tables: Sequence[Table]) -> str:
    """Return a self-contained page of the tables, without scripts."""
    body = html_fragment(tables)
    head = f'<meta charset="utf-8"><title>longctx-bench</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def html_fragment(tables: Sequence[Table]) -> str:
    """Return the tables as an HTML fragment without a style sheet, for notebooks."""
    return "\n".join(map(_block, tables))


def _block(table: Table) -> str:
    head = "".join(f'<th scope="col">{_escaped(cell)}</th>' for cell in table.header)
    rows = "\n".join("<tr>" + "".join(f"<td>{_shown(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    notes = "".join(f"<p>{_escaped(note)}</p>" for note in (*table.legend("bold", "underlined"), *table.notes))
    return (
        f'<h2>{_escaped(table.title)}</h2>\n<div class="table"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>\n{notes}"
    )


def _shown(entry: str | Entry) -> str:
    if isinstance(entry, str):
        return _escaped(entry)
    text = _escaped(entry.text)
    tag = {Mark.BEST: "b", Mark.CLOSE: "u"}.get(entry.mark)
    if tag:
        text = f"<{tag}>{text}</{tag}>"
    return f"{text} <small>{_escaped(entry.detail)}</small>" if entry.detail else text


def _escaped(text: str) -> str:
    return escape(single_line(text))
