"""One restrained style for all figures, and saving them so that the same data give the same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import atomic_write

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")
DPI = 300
"""Of PNG files."""
PAGE = 7.0
"""Inches: the text width of a two-column paper, and the width of every figure that can take it."""
COLUMN = 3.4
"""Inches: the width of one of its columns."""
SHADES = "viridis"
"""Perceptually even, safe for colour-blind readers, and in order when printed grey."""
FAINT = "#767676"
"""For what is not data: the training context, references, notes."""

_RC: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "hatch.linewidth": 0.5,
    "errorbar.capsize": 0,
    "savefig.dpi": DPI,
    "pdf.fonttype": 42,  # TrueType: text in the PDF stays text, and journals refuse Type 3
    "svg.hashsalt": "longctx-bench",
}
_UNPRINTABLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""What XML does not take, or what turns the text around it; a line may end."""
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}


@contextmanager
def styled() -> Iterator[None]:
    """Build and save figures in this project's style, whatever the user's own matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, that no global state knows; use it inside :func:`styled`.

    Texts are drawn as they stand: a name is no formula, whatever it holds.
    """
    return _literal_figure()(figsize=(width, height), layout="constrained")


@cache
def _literal_figure() -> type[Figure]:
    from matplotlib.figure import Figure

    class LiteralFigure(Figure):
        """A figure whose texts come from data."""

        def draw(self, renderer: Any) -> None:
            """Draw; now all texts are there."""
            _make_literal(self)
            super().draw(renderer)

    return LiteralFigure


class _Literal:
    """What names the ticks of an axis, without formulas."""

    def __init__(self, names: Callable[..., str]) -> None:
        self._names = names

    def __call__(self, *place: Any) -> str:
        return re.sub(r"(?<!\\)\$", r"\\$", _UNPRINTABLE.sub(" ", self._names(*place)))


def _make_literal(artist: Artist) -> None:
    """Let no text below an artist be read as a formula, nor break the file that it is written to."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    if isinstance(artist, Text):
        artist.set_parse_math(False)
        if artist.get_text() != (clean := _UNPRINTABLE.sub(" ", artist.get_text())):
            artist.set_text(clean)
    elif isinstance(artist, Axis):
        _make_literal(artist.label)
        # Ticks are made as they are drawn; powers of ten are formulas of matplotlib's own.
        formatter = artist.get_major_formatter()
        if isinstance(formatter, FuncFormatter) and not isinstance(formatter.func, _Literal):
            formatter.func = _Literal(formatter.func)
    else:
        for child in artist.get_children():
            _make_literal(child)


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write a figure once for each format, atomically, without dates or random ids; its layout is fixed from then on.

    Args:
        figure: made by one of this package's functions.
        stem: the path without its ending.
        formats: of :data:`FORMATS`.

    Returns:
        The paths, in the order of the formats.

    Raises:
        UserError: an unknown format, or the folder cannot be written.
    """
    for form in formats:
        if form not in FORMATS:
            raise UserError(f"figures are written as {', '.join(FORMATS)}, not as '{form}'")
    with styled():
        # Laid out once and not for each format: that takes longer than drawing, and all formats look the same.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    paths = []
    for form in formats:
        path = stem.with_name(f"{stem.name}.{form}")
        with styled(), atomic_write(path) as temporary:
            figure.savefig(temporary, format=form, metadata=_METADATA[form])
        paths.append(path)
    return paths


def grid_of(count: int, most: int) -> tuple[int, int]:
    """Return rows and columns for ``count`` panels, at most ``most`` in a row, the last row as full as can be."""
    rows = -(-count // most)
    return rows, -(-count // rows)


def tokens(length: int) -> str:
    """Return a length as short as it can be exact: 512, 4,096, 128k (k is 1,024, from 10,000 tokens on)."""
    return f"{length // 1024}k" if length >= 10_000 and length % 1024 == 0 else f"{length:,}"
