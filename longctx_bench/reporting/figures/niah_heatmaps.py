"""Needle heatmaps: depth x length, one panel per model, with a shared colour scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.figures import style
from longctx_bench.reporting.figures.plot_styles import assign_plot_styles, base_title, labels
from longctx_bench.reporting.results import CellSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_COLUMNS = 5
_VALUE_SIZE = (0.27, 0.095)
"""Width and height of a printed value, in inches."""
_CHARACTER = 0.6
"""Width of a character relative to the font size."""


def heatmap_sheet(cells: Sequence[CellSummary]) -> Figure:
    """Draw depth x length heatmaps of all models in one figure.

    Models with the same training context share their columns; lengths that were not measured stay empty. Values are
    printed into the pixels where these are large enough.

    Args:
        cells: cells of one task; those without a depth grid are ignored.

    Returns:
        The figure: one panel per model, scores in per cent, a dashed line at the end of the training context.

    Raises:
        UserError: no cell has a depth grid.
    """
    gridded = [summary for summary in cells if summary.by_depth]
    if not gridded:
        raise UserError("no finished cell has a depth grid; run the task niah first (tasks/README.md: one of your own)")
    names = list(assign_plot_styles(gridded))
    depths = sorted({depth for summary in gridded for depth in summary.by_depth})
    rows, columns = style.grid_of(len(names), _MAX_COLUMNS)
    cell_lengths = max(len(_lengths(gridded, name)) for name in names)
    # One text column is enough for few lengths; many models need the whole page.
    panel = min((style.PAGE - 0.8) / columns, max(1.5, 0.36 * cell_lengths + 0.3))
    width = max(style.COLUMN, panel * columns + 0.8)
    with style.styled():
        height = max(1.15, 0.105 * len(depths))
        figure = style.new_figure(width, (height + 0.42) * rows + 0.45)
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        pixel = ((panel - 0.1) / cell_lengths, height / len(depths))
        values = pixel[0] >= _VALUE_SIZE[0] and pixel[1] >= _VALUE_SIZE[1]
        label_of = labels(gridded)
        title_size = _font_size(max(map(len, label_of.values())), panel, 8)
        image: Any = None
        for index, axis in enumerate(axes.flat):
            if index >= len(names):
                axis.set_axis_off()
                continue
            cells_of_model = [s for s in gridded if s.variant == names[index]]
            image = _heatmap(axis, cells_of_model, _lengths(gridded, names[index]), depths, values)
            _mark_lengths(axis, _lengths(gridded, names[index]), cells_of_model[0].original_length, panel - 0.1)
            axis.set_title(label_of[names[index]], pad=3, fontsize=title_size)
        figure.supxlabel("length (tokens) and multiple of the training context, which ends at the dashed line", size=7)
        figure.supylabel("needle depth (%)", size=7)
        bar = figure.colorbar(image, ax=axes, fraction=0.03, aspect=14 * rows + 6, pad=0.012)
        bar.set_label(f"{gridded[0].cell.task}{_on(gridded)}: score (%)\n{_sample_sizes(gridded)}")
        bar.outline.set_linewidth(0.5)
    return figure


def _font_size(characters: float, inches: float, max_size: float) -> float:
    """Return the font size in points at which ``characters`` fit into ``inches``, at most ``max_size``."""
    return min(max_size, inches * 72 / (_CHARACTER * characters))


def _sample_sizes(cells: Sequence[CellSummary]) -> str:
    """Return the number of examples per cell of the grid, or its range, as text."""
    counts = {int((s.depths == depth).sum()) for s in cells for depth in s.by_depth} - {0}
    if not counts:
        return f"n = {min(s.n for s in cells):,} per length"
    span = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
    return f"n = {span} per cell"


def _on(cells: Sequence[CellSummary]) -> str:
    base = base_title(cells)
    return f" on {base}" if base else ""


def _lengths(cells: Sequence[CellSummary], name: str) -> list[int]:
    """Return the lengths at which any model with the same training context was measured."""
    context = next(s.original_length for s in cells if s.variant == name)
    return sorted({s.cell.length for s in cells if s.original_length == context})


def _heatmap(
    axis: Axes, cells: Sequence[CellSummary], lengths: Sequence[int], depths: Sequence[float], values: bool
) -> Any:
    import numpy as np

    scores = {(s.cell.length, depth): 100 * score for s in cells for depth, score in s.by_depth.items()}
    grid = np.array([[scores.get((length, depth), math.nan) for length in lengths] for depth in depths])
    axis.set_facecolor("#E4E4E4")  # not measured
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
    """Label the columns and draw the line at the end of the training context."""
    shown = [style.tokens(length) for length in lengths]
    longest = max(map(len, shown)) + 0.5
    step = 1
    while _font_size(longest, step * width / len(lengths), 6) < 5:
        step += 1
    size = _font_size(longest, step * width / len(lengths), 6)
    names = [f"{name}\n{length / context:.3g}x" for name, length in zip(shown, lengths, strict=True)]
    axis.set_xticks(list(range(0, len(lengths), step)), names[::step], fontsize=size)
    inside = sum(length <= context for length in lengths)
    if 0 < inside < len(lengths):
        # White on black, visible on both ends of the colour scale.
        axis.axvline(inside - 0.5, color="black", linewidth=1.8)
        axis.axvline(inside - 0.5, color="white", linewidth=0.9, linestyle=(0, (3, 2)))
