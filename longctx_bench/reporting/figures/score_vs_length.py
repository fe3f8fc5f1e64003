"""Score against scale: one panel per task, one line with a 95 % band per model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import NATURAL
from longctx_bench.reporting.figures import style
from longctx_bench.reporting.figures.cell_selection import (
    axis_label,
    axis_top,
    displayed_interval,
    sample_sizes,
    scale_name,
    task_order,
)
from longctx_bench.reporting.figures.plot_styles import PlotStyle, assign_plot_styles, base_title, labels
from longctx_bench.reporting.results import CellSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_LINES = 9
"""Lines per panel that are still distinguishable."""
_COLUMNS = 3
_MAX_TICKS = 4
"""Ticks that fit a narrow panel at full font size."""
_MAX_TITLE = 24
"""Characters of a title that fit a narrow panel at full font size."""
_MARKER_SHIFT = 0.035
"""Octaves between neighbouring markers, so that equal scores do not hide each other."""


def length_sheet(cells: Sequence[CellSummary]) -> Figure:
    """Draw each task's score against the scale (length / training context) on a logarithmic axis.

    Loss and retrieval side by side, with the cropped context as a baseline, are Figure 5 of arXiv 2512.12167. Too many
    models for one panel are split into rows of panels; families of methods stay together, and each row includes the
    unmodified model.

    Args:
        cells: cells of one or more bases; whole documents, and tasks with a single length, are ignored.

    Returns:
        The figure: markers are means, shifted by a few hundredths of an octave; bands are 95 % intervals.

    Raises:
        UserError: no task was measured at two lengths.
    """
    from matplotlib.patches import Patch

    panels = _panels(cells)
    if not panels:
        raise UserError("no task was measured at two lengths; run one with --scale 1x,2x,4x")
    drawn = [summary for task_cells in panels.values() for summary in task_cells]
    plot_styles = assign_plot_styles(drawn)
    rows_of_models = groups(plot_styles)
    rows, columns = style.grid_of(len(panels), _COLUMNS)
    with style.styled():
        width = style.PAGE if columns > 1 else 4.6
        figure = style.new_figure(width, 2.1 * rows * len(rows_of_models) + 0.15)
        for subfigure, names in zip(
            figure.subfigures(len(rows_of_models), 1, squeeze=False).flat, rows_of_models, strict=True
        ):
            axes = subfigure.subplots(rows, columns, squeeze=False).flat
            for axis in axes[len(panels) :]:
                axis.set_axis_off()
            handles: dict[str, Any] = {}
            for axis, (task, cells_of_task) in zip(axes, panels.items(), strict=False):
                _describe(axis, task, cells_of_task, narrow=columns == _COLUMNS)
                for index, name in enumerate(names):
                    line = [s for s in cells_of_task if s.variant == name]
                    if line:
                        shift = _MARKER_SHIFT * (index - (len(names) - 1) / 2)
                        handles[name] = _line(axis, line, plot_styles[name], shift, labels(drawn)[name])
            interval = Patch(color=style.FAINT, alpha=0.3, linewidth=0, label="95 % interval")
            subfigure.legend(
                handles=[*(handles[name] for name in names), interval],
                loc="outside right upper" if rows > 2 else "outside right center",
                title=base_title(drawn) or None, alignment="left", handlelength=3.2,
            )  # fmt: skip
    return figure


def groups(plot_styles: dict[str, PlotStyle]) -> list[list[str]]:
    """Split models into groups of at most nine, keeping families together; each starts with the first model."""
    names = list(plot_styles)
    if len(names) <= _MAX_LINES:
        return [names]
    first, rest = names[0], names[1:]
    rows = math.ceil(len(rest) / (_MAX_LINES - 1))
    target = math.ceil(len(rest) / rows)
    grouped: list[list[str]] = [[first]]
    for name in rest:
        same = (plot_styles[grouped[-1][-1]].family, plot_styles[grouped[-1][-1]].filled) == (
            plot_styles[name].family,
            plot_styles[name].filled,
        )
        size = len(grouped[-1]) - 1
        if size >= _MAX_LINES - 1 or (size >= target and not same):
            grouped.append([first])
        grouped[-1].append(name)
    return grouped


def _panels(cells: Sequence[CellSummary]) -> dict[str, list[CellSummary]]:
    """Return the cells to draw by task, sorted by scale; tasks with one scale are left out."""
    by_task: dict[str, list[CellSummary]] = {}
    for summary in sorted(cells, key=lambda s: (task_order(s.cell.task), s.scale)):
        if summary.cell.length != NATURAL:
            by_task.setdefault(summary.cell.task, []).append(summary)
    return {task: task_cells for task, task_cells in by_task.items() if len({s.scale for s in task_cells}) > 1}


def _line(axis: Axes, cells: Sequence[CellSummary], plot_style: PlotStyle, shift: float, label: str) -> Any:
    positions = [summary.scale * 2**shift for summary in cells]
    low, means, high = zip(*map(displayed_interval, cells), strict=True)
    axis.fill_between(positions, low, high, color=plot_style.colour, alpha=0.13, linewidth=0)
    axis.vlines(positions, low, high, color=plot_style.colour, linewidth=0.6)
    return axis.plot(positions, means, label=label, **plot_style.line(), clip_on=False, zorder=3)[0]


def _size(points: float, smaller: bool) -> dict[str, Any]:
    """Return a font-size argument, or none: matplotlib does not take a size of None as the style's default."""
    return {"fontsize": points} if smaller else {}


def _describe(axis: Axes, task: str, cells: Sequence[CellSummary], narrow: bool) -> None:
    scales = sorted({summary.scale for summary in cells})
    contexts = {summary.original_length for summary in cells}
    context = next(iter(contexts)) if len(contexts) == 1 else None
    ticks = [scale_name(scale) + (f"\n{style.tokens(round(context * scale))}" if context else "") for scale in scales]
    axis.set_xscale("log", base=2)
    # Five ticks overlap in a panel of a third of the page at full size.
    axis.set_xticks(scales, ticks, **_size(5, narrow and len(scales) > _MAX_TICKS))
    axis.minorticks_off()
    axis.set_xlabel("scale and length (tokens)" if context else "length / training context")
    axis.set_ylabel(axis_label(cells))
    if cells[0].percent:
        axis.set_ylim(0, axis_top(cells))
    title = f"{task} ({sample_sizes(cells)})"
    axis.set_title(title, **_size(7, narrow and len(title) > _MAX_TITLE))
    axis.grid(visible=True, axis="y")
    if scales[0] <= 1 < scales[-1]:
        # End of the training context.
        axis.axvline(1, color=style.FAINT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
