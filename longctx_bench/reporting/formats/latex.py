"""LaTeX output: floats with booktabs rules; bold for the best entries, underlined for those not significantly worse."""

from __future__ import annotations

import re
from collections.abc import Sequence

from longctx_bench.core.sanitize import single_line
from longctx_bench.reporting.tables.base import Entry, Mark, Table

_SPECIAL = {
    ord(character): shown
    for character, shown in {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "`": r"\`{}",
        '"': "''",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "\u00d7": r"$\times$",
        "†": r"\dag{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }.items()
}
_MINUS = re.compile(r"(?<![\w.)])-(?=[\d.])")
_MAX_WIDTH = 66
"""Characters of ``\\small`` text that fit between the margins of an article."""


def latex(tables: Sequence[Table]) -> str:
    r"""Return ``table`` floats with caption, label and notes, ready for ``\\input``; only ``booktabs`` is needed.

    Labels are ``tab:`` and the title up to its colon. Tables too wide for an article are scaled down, which needs
    ``graphicx``.
    """
    labels: list[str] = []
    for table in tables:
        labels.append(_label(table, labels))
    blocks = [_float(table, label) for table, label in zip(tables, labels, strict=True)]
    packages = ["booktabs", *(["graphicx"] if any(map(_is_wide, tables)) else [])]
    needs = "".join(f"\\usepackage{{{package}}}" for package in packages)
    return f"% needs {needs}\n\n" + "\n\n".join(blocks) + "\n"


def _float(table: Table, label: str) -> str:
    body = [_row(row) for row in table.rows]
    tabular = [
        f"\\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
        r"\toprule",
        _row(table.header),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if _is_wide(table):
        tabular = [
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            *tabular[:-1],
            tabular[-1] + "}",
        ]
    notes = [_escaped(note) for note in (*table.legend("bold", "underlined"), *table.notes)]
    under = [
        r"\par\medskip",
        r"\begin{minipage}{\linewidth}",
        r"\footnotesize\raggedright",
        "\\par\n".join(notes),
        r"\end{minipage}",
    ]
    return "\n".join(
        [
            r"\begin{table}[tbp]",
            r"\centering",
            f"\\caption{{{_escaped(table.title)}}}",
            f"\\label{{{label}}}",
            r"\small\smallskip",
            *tabular,
            *(under if notes else []),
            r"\end{table}",
        ]
    )


def _row(cells: Sequence[str | Entry]) -> str:
    row = " & ".join(map(_shown, cells)) + r" \\"
    # After \\ or \midrule, a leading bracket or star would be read as an argument.
    return "{}" + row if row.lstrip()[0] in "[*" else row


def _shown(entry: str | Entry) -> str:
    if isinstance(entry, str):
        return _number(entry)
    text = _number(entry.text)
    if entry.mark is not Mark.NONE:
        text = f"\\{'textbf' if entry.mark is Mark.BEST else 'underline'}{{{text}}}"
    return f"{text} {{\\scriptsize {_number(entry.detail)}}}" if entry.detail else text


def _number(text: str) -> str:
    """Escape text; a hyphen before a number becomes a minus, one inside a name does not."""
    return _MINUS.sub("$-$", _escaped(text))


def _escaped(text: str) -> str:
    # LaTeX turns two hyphens into a dash.
    return re.sub("-(?=-)", "-{}", single_line(text).translate(_SPECIAL))


def _is_wide(table: Table) -> bool:
    widths = [max(map(_width, column)) for column in zip(table.header, *table.rows, strict=True)]
    return sum(widths) + 2 * len(widths) > _MAX_WIDTH


def _width(entry: str | Entry) -> float:
    if isinstance(entry, str):
        return len(entry)
    return len(entry.text) + 0.7 * len(entry.detail)


def _label(table: Table, taken: Sequence[str]) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", table.title.partition(": ")[0].lower()).strip("-") or "table"
    label = f"tab:{name}"
    number = 2
    while label in taken:
        label = f"tab:{name}-{number}"
        number += 1
    return label
