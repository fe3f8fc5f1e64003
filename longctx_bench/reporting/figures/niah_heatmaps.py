"""The needle heatmaps: depth by length, all contestants on one sheet with one colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.figures import style
from longctx_bench.reporting.figures.plot_styles import base_title, labels, looks
from longctx_bench.reporting.results import CellSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_COLUMNS = 5
_ROOM = (0.27, 0.095)
"""Inches, width and height, that a printed value takes."""
_CHARACTER = 0.6
"""Width of a character, in font sizes."""


def heatmap_sheet(cells: Sequence[CellSummary]) -> Figure:
    """Draw depth x length heatmaps of all contestants on one sheet.

    Contestants of one training context share their columns: a length that one of them was not measured at stays
    empty. Values are printed into the pixels where these are large enough.

    Args:
        cells: those of one task with needles on a grid of depths; others are left out.

    Returns:
        The figure, one panel a contestant, scores in per cent, a dashed line where the training context ends.

    Raises:
        UserError: no cell has a grid of depths.
    """
    gridded = [summary for summary in cells if summary.by_depth]
    if not gridded:
        raise UserError(
            "no finished cell has a grid of depths; run the task niah first (tasks/README.md: one of your own)"
        )
    names = list(looks(gridded))
    depths = sorted({depth for summary in gridded for depth in summary.by_depth})
    rows, columns = style.grid_of(len(names), _MOST_COLUMNS)
    cell_lengths = max(len(_lengths(gridded, name)) for name in names)
    # One column of text is enough for few lengths; a whole page is needed for many contestants.
    panel = min((style.PAGE - 0.8) / columns, max(1.5, 0.36 * cell_lengths + 0.3))
    width = max(style.COLUMN, panel * columns + 0.8)
    with style.styled():
        height = max(1.15, 0.105 * len(depths))
        figure = style.new_figure(width, (height + 0.42) * rows + 0.45)
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        pixel = ((panel - 0.1) / cell_lengths, height / len(depths))
        values = pixel[0] >= _ROOM[0] and pixel[1] >= _ROOM[1]
        named = labels(gridded)
        title = _size(max(map(len, named.values())), panel, 8)
        image: Any = None
        for place, axis in enumerate(axes.flat):
            if place >= len(names):
                axis.set_axis_off()
                continue
            own = [s for s in gridded if s.contestant == names[place]]
            image = _heatmap(axis, own, _lengths(gridded, names[place]), depths, values)
            _mark_lengths(axis, _lengths(gridded, names[place]), own[0].original_length, panel - 0.1)
            axis.set_title(named[names[place]], pad=3, fontsize=title)
        figure.supxlabel("length (tokens) and multiple of the training context, which ends at the dashed line", size=7)
        figure.supylabel("needle depth (%)", size=7)
        bar = figure.colorbar(image, ax=axes, fraction=0.03, aspect=14 * rows + 6, pad=0.012)
        bar.set_label(f"{gridded[0].cell.task}{_on(gridded)}: score (%)\n{_sizes(gridded)}")
        bar.outline.set_linewidth(0.5)
    return figure


def _size(characters: float, inches: float, most: float) -> float:
    """Return the font size at which so many characters fit, at most ``most``."""
    return min(most, inches * 72 / (_CHARACTER * characters))


def _sizes(cells: Sequence[CellSummary]) -> str:
    """Return how many examples stand behind a cell of the grid, or the range."""
    counts = {int((s.depths == depth).sum()) for s in cells for depth in s.by_depth} - {0}
    if not counts:
        return f"n = {min(s.n for s in cells):,} per length"
    span = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
    return f"n = {span} per cell"


def _on(cells: Sequence[CellSummary]) -> str:
    base = base_title(cells)
    return f" on {base}" if base else ""


def _lengths(cells: Sequence[CellSummary], name: str) -> list[int]:
    """Return the lengths at which any contestant with the same training context was measured."""
    context = next(s.original_length for s in cells if s.contestant == name)
    return sorted({s.cell.length for s in cells if s.original_length == context})


def _heatmap(
    axis: Axes, cells: Sequence[CellSummary], lengths: Sequence[int], depths: Sequence[float], values: bool
) -> Any:
    import numpy as np

    found = {(s.cell.length, depth): 100 * score for s in cells for depth, score in s.by_depth.items()}
    grid = np.array([[found.get((length, depth), math.nan) for length in lengths] for depth in depths])
    axis.set_facecolor("#E4E4E4")  # what was not measured
    image = axis.imshow(grid, cmap=style.SHADES, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    step = max(1, round((len(depths) - 1) / 5))
    axis.set_yticks(list(range(0, len(depths), step)), [f"{depth:g}" for depth in depths[::step]], fontsize=6)
    axis.tick_params(length=1.5, pad=1.5)
    axis.spines[:].set_visible(False)
    if values:
        for (row, column), score in np.ndenumerate(grid):
            if not math.isnan(score):
                colour = "white" if score < 60 else "black"
                axis.text(column, row, f"{score:.0f}", ha="center", va="center", fontsize=5, color=colour)
    return image


def _mark_lengths(axis: Axes, lengths: Sequence[int], context: int, width: float) -> None:
    """Name the columns, and draw the line right of which lies what the model was never trained on."""
    shown = [style.tokens(length) for length in lengths]
    longest = max(map(len, shown)) + 0.5
    step = 1
    while _size(longest, step * width / len(lengths), 6) < 5:
        step += 1
    size = _size(longest, step * width / len(lengths), 6)
    names = [f"{name}\n{length / context:.3g}x" for name, length in zip(shown, lengths, strict=True)]
    axis.set_xticks(list(range(0, len(lengths), step)), names[::step], fontsize=size)
    inside = sum(length <= context for length in lengths)
    if 0 < inside < len(lengths):
        # White on black, so that it shows on the dark end of the scale and on the light one.
        axis.axvline(inside - 0.5, color="black", linewidth=1.8)
        axis.axvline(inside - 0.5, color="white", linewidth=0.9, linestyle=(0, (3, 2)))
