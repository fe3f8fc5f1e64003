"""Table model shared by all formats: rows of entries with marks, notes, and unrounded records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Mark(Enum):
    """Result of a column's significance test for an entry."""

    NONE = ""
    BEST = "best"
    CLOSE = "not significantly worse"


@dataclass(frozen=True)
class Entry:
    """A number with its interval; each format renders the mark in its own way."""

    text: str
    """The rounded number; empty where nothing was measured."""
    detail: str = ""
    """Interval and the like, set smaller where the format can: ``[98.1, 100.0]``."""
    mark: Mark = Mark.NONE

    def __str__(self) -> str:
        return f"{self.text} {self.detail}".rstrip()


@dataclass(frozen=True)
class Table:
    """A title, a header, and rows of text or entries; the first columns name the row."""

    title: str
    """``NAME: description``; the name is the label in LaTeX."""
    header: tuple[str, ...]
    rows: tuple[tuple[str | Entry, ...], ...]
    notes: tuple[str, ...] = ()
    """Footnotes."""
    records: tuple[Mapping[str, object], ...] = ()
    """Unrounded numbers, one mapping per CSV line; records of the same cell are merged."""
    keys: int = 1
    """Number of leading columns that name a row; repeated in each part of a table too wide for the terminal."""

    def legend(self, best: str, close: str) -> tuple[str, ...]:
        """Return a line that explains the marks in use; empty where there are none.

        Args:
            best: how the format renders the best entries, such as ``bold``.
            close: how it renders entries that are not significantly worse, such as ``underlined``.
        """
        marks = {entry.mark for row in self.rows for entry in row if isinstance(entry, Entry)}
        parts = [f"{best}: best of the column"] if Mark.BEST in marks else []
        if Mark.CLOSE in marks:
            test = "paired test on the same examples, p values adjusted by Holm over the rows that share them, 5 %"
            parts.append(f"{close}: not significantly worse ({test})")
        return ("; ".join(parts),) if parts else ()
