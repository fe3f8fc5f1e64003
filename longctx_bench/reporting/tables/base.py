"""What a table is, whatever it is written as: text with marks, notes, and the same numbers unrounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Mark(Enum):
    """What a column's comparison says of an entry."""

    NONE = ""
    BEST = "best"
    CLOSE = "not significantly worse"


@dataclass(frozen=True)
class Entry:
    """A number with its interval; each format shows the mark in its own way."""

    text: str
    """The number itself, rounded; empty where nothing was measured."""
    detail: str = ""
    """What stands behind it, smaller where the format can: ``[98.1, 100.0]``."""
    mark: Mark = Mark.NONE

    def __str__(self) -> str:
        return f"{self.text} {self.detail}".rstrip()


@dataclass(frozen=True)
class Table:
    """A title, a header, and rows of text or entries; the first columns name the row."""

    title: str
    """``NAME: what is measured``; the name alone labels the table in LaTeX."""
    header: tuple[str, ...]
    rows: tuple[tuple[str | Entry, ...], ...]
    notes: tuple[str, ...] = ()
    """What a reader must know to compare the rows."""
    records: tuple[Mapping[str, object], ...] = ()
    """The same numbers unrounded, one mapping a line of the CSV; those of one cell become one line."""
    keys: int = 1
    """How many columns name a row: they stand in every part of a table that is too wide for a terminal."""

    def legend(self, best: str, close: str) -> tuple[str, ...]:
        """Explain the marks that the table uses, in no line or one.

        Args:
            best: how the format shows the best entries: ``bold``.
            close: how it shows those that are not significantly worse: ``underlined``.
        """
        used = {entry.mark for row in self.rows for entry in row if isinstance(entry, Entry)}
        parts = [f"{best}: best of the column"] if Mark.BEST in used else []
        if Mark.CLOSE in used:
            test = "paired test on the same examples, p values adjusted by Holm over the rows that share them, 5 %"
            parts.append(f"{close}: not significantly worse ({test})")
        return ("; ".join(parts),) if parts else ()
