"""Scores against the scale: one panel a task, one line with its 95 % band a contestant."""

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

_TOGETHER = 9
"""Lines in one panel that can still be told apart."""
_COLUMNS = 3
_TICKS = 5
"""Of a narrow panel that fit at full size."""
_TITLE = 24
"""Characters of a panel's title that fit at full size."""
_APART = 0.035
"""Octaves between the markers of neighbours, so that equal scores do not hide each other."""


def length_sheet(cells: Sequence[CellSummary]) -> Figure:
    """Draw each task's score against the scale (length / training context), on a logarithmic axis.

    Loss and retrieval side by side, with the cropped context as a baseline, are Figure 5 of arXiv 2512.12167. More
    contestants than can be told apart are drawn in several groups below each other, families of methods kept whole,
    each group with the untouched model in it.

    Args:
        cells: of one base or several; those of whole documents, and tasks with one length, are left out.

    Returns:
        The figure: markers are means, moved apart by a few hundredths of an octave; bands are 95 % intervals.

    Raises:
        UserError: no task was measured at two lengths.
    """
    from matplotlib.patches import Patch

    panels = _panels(cells)
    if not panels:
        raise UserError("no task was measured at two lengths; run one with --scale 1x,2x,4x")
    drawn = [summary for own in panels.values() for summary in own]
    found = assign_plot_styles(drawn)
    parts = groups(found)
    rows, columns = style.grid_of(len(panels), _COLUMNS)
    with style.styled():
        width = style.PAGE if columns > 1 else 4.6
        figure = style.new_figure(width, 2.1 * rows * len(parts) + 0.15)
        for part, names in zip(figure.subfigures(len(parts), 1, squeeze=False).flat, parts, strict=True):
            axes = part.subplots(rows, columns, squeeze=False).flat
            for axis in axes[len(panels) :]:
                axis.set_axis_off()
            handles: dict[str, Any] = {}
            for axis, (task, cells_of_task) in zip(axes, panels.items(), strict=False):
                _describe(axis, task, cells_of_task, narrow=columns == _COLUMNS)
                for place, name in enumerate(names):
                    line = [s for s in cells_of_task if s.variant == name]
                    if line:
                        shift = _APART * (place - (len(names) - 1) / 2)
                        handles[name] = _line(axis, line, found[name], shift, labels(drawn)[name])
            interval = Patch(color=style.FAINT, alpha=0.3, linewidth=0, label="95 % interval")
            part.legend(
                handles=[*(handles[name] for name in names), interval],
                loc="outside right upper" if rows > 2 else "outside right center",
                title=base_title(drawn) or None, alignment="left", handlelength=3.2,
            )  # fmt: skip
    return figure


def groups(found: dict[str, PlotStyle]) -> list[list[str]]:
    """Divide contestants into groups of at most nine, families kept whole; each begins with the first of all."""
    names = list(found)
    if len(names) <= _TOGETHER:
        return [names]
    first, rest = names[0], names[1:]
    rows = math.ceil(len(rest) / (_TOGETHER - 1))
    target = math.ceil(len(rest) / rows)
    made: list[list[str]] = [[first]]
    for name in rest:
        same = (found[made[-1][-1]].family, found[made[-1][-1]].filled) == (found[name].family, found[name].filled)
        size = len(made[-1]) - 1
        if size >= _TOGETHER - 1 or (size >= target and not same):
            made.append([first])
        made[-1].append(name)
    return made


def _panels(cells: Sequence[CellSummary]) -> dict[str, list[CellSummary]]:
    """Return by task the cells to draw, by scale; tasks with one scale have no line."""
    found: dict[str, list[CellSummary]] = {}
    for summary in sorted(cells, key=lambda s: (task_order(s.cell.task), s.scale)):
        if summary.cell.length != NATURAL:
            found.setdefault(summary.cell.task, []).append(summary)
    return {task: own for task, own in found.items() if len({s.scale for s in own}) > 1}


def _line(axis: Axes, cells: Sequence[CellSummary], look: PlotStyle, shift: float, label: str) -> Any:
    places = [summary.scale * 2**shift for summary in cells]
    low, means, high = zip(*map(displayed_interval, cells), strict=True)
    axis.fill_between(places, low, high, color=look.colour, alpha=0.13, linewidth=0)
    axis.vlines(places, low, high, color=look.colour, linewidth=0.6)
    return axis.plot(places, means, label=label, **look.line(), clip_on=False, zorder=3)[0]


def _size(points: float, smaller: bool) -> dict[str, Any]:
    """Return a font size to pass on, or none: matplotlib takes a size of None for another one than the style's."""
    return {"fontsize": points} if smaller else {}


def _describe(axis: Axes, task: str, cells: Sequence[CellSummary], narrow: bool) -> None:
    scales = sorted({summary.scale for summary in cells})
    contexts = {summary.original_length for summary in cells}
    context = next(iter(contexts)) if len(contexts) == 1 else None
    ticks = [scale_name(scale) + (f"\n{style.tokens(round(context * scale))}" if context else "") for scale in scales]
    axis.set_xscale("log", base=2)
    # Six ticks of a panel that is a third of a page wide run into each other at full size.
    axis.set_xticks(scales, ticks, **_size(5, narrow and len(scales) > _TICKS))
    axis.minorticks_off()
    axis.set_xlabel("scale and length (tokens)" if context else "length / training context")
    axis.set_ylabel(axis_label(cells))
    if cells[0].percent:
        axis.set_ylim(0, axis_top(cells))
    title = f"{task} ({sample_sizes(cells)})"
    axis.set_title(title, **_size(7, narrow and len(title) > _TITLE))
    axis.grid(visible=True, axis="y")
    if scales[0] <= 1 < scales[-1]:
        # Right of this line lies what the model was never trained on.
        axis.axvline(1, color=style.FAINT, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
