"""Matplotlib style of all figures, and reproducible saving: the same data gives the same bytes."""

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
"""Resolution of PNG files."""
PAGE = 7.0
"""Inches: text width of a two-column paper, and maximum width of figures."""
COLUMN = 3.4
"""Inches: width of one column."""
SHADES = "viridis"
"""Colour map: perceptually uniform, safe for colour-blind readers, monotonic when printed in grey."""
FAINT = "#767676"
"""Colour of what is not data: training context, references, notes."""

_RC: Any = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same glyphs everywhere
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
    "pdf.fonttype": 42,  # TrueType: text in the PDF stays text, and journals reject Type 3
    "svg.hashsalt": "longctx-bench",
}
_UNPRINTABLE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
"""Characters that XML does not allow or that reverse text; line breaks are allowed."""
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}


@contextmanager
def styled() -> Iterator[None]:
    """Apply this project's style, independent of the user's matplotlibrc."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches, outside of pyplot's global state; use it inside :func:`styled`.

    Texts are drawn literally: names are never parsed as math.
    """
    return _literal_figure()(figsize=(width, height), layout="constrained")


@cache
def _literal_figure() -> type[Figure]:
    from matplotlib.figure import Figure

    class LiteralFigure(Figure):
        """A figure whose texts are never parsed as math."""

        def draw(self, renderer: Any) -> None:
            """Draw after making all texts literal, which exist only now."""
            _make_literal(self)
            super().draw(renderer)

    return LiteralFigure


class _Literal:
    """A tick formatter without math."""

    def __init__(self, names: Callable[..., str]) -> None:
        self._names = names

    def __call__(self, *args: Any) -> str:
        return re.sub(r"(?<!\\)\$", r"\\$", _UNPRINTABLE.sub(" ", self._names(*args)))


def _make_literal(artist: Artist) -> None:
    """Disable math in all texts below an artist, and replace characters that would break the file."""
    from matplotlib.axis import Axis
    from matplotlib.text import Text
    from matplotlib.ticker import FuncFormatter

    if isinstance(artist, Text):
        artist.set_parse_math(False)
        if artist.get_text() != (clean := _UNPRINTABLE.sub(" ", artist.get_text())):
            artist.set_text(clean)
    elif isinstance(artist, Axis):
        _make_literal(artist.label)
        # Tick labels are created while drawing; powers of ten are matplotlib's own math.
        formatter = artist.get_major_formatter()
        if isinstance(formatter, FuncFormatter) and not isinstance(formatter.func, _Literal):
            formatter.func = _Literal(formatter.func)
    else:
        for child in artist.get_children():
            _make_literal(child)


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Write a figure in each format, atomically, without dates or random ids; this freezes its layout.

    Args:
        figure: a figure of this package.
        stem: path without extension.
        formats: any of :data:`FORMATS`.

    Returns:
        The paths, in the order of the formats.

    Raises:
        UserError: a format is unknown, or the folder is not writable.
    """
    for form in formats:
        if form not in FORMATS:
            raise UserError(f"figures are written as {', '.join(FORMATS)}, not as '{form}'")
    with styled():
        # Layout takes longer than drawing, and once for all formats makes them look the same.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    paths = []
    for form in formats:
        path = stem.with_name(f"{stem.name}.{form}")
        with styled(), atomic_write(path) as temporary:
            figure.savefig(temporary, format=form, metadata=_METADATA[form])
        paths.append(path)
    return paths


def grid_of(count: int, max_columns: int) -> tuple[int, int]:
    """Return (rows, columns) for ``count`` panels in at most ``max_columns`` columns, with full rows where possible."""
    rows = -(-count // max_columns)
    return rows, -(-count // rows)


def tokens(length: int) -> str:
    """Return a length as short exact text: 512, 4,096, 128k (k is 1,024, from 10,000 tokens on)."""
    return f"{length // 1024}k" if length >= 10_000 and length % 1024 == 0 else f"{length:,}"
