"""Bar charts at one scale, grouped by task, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from longctx_bench.benchmarks.lm_eval_task import PREFIX
from longctx_bench.core.errors import UserError
from longctx_bench.reporting.figures import style
from longctx_bench.reporting.figures.cell_selection import (
    at_scale,
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

_MAX_GROUPED = 8
"""Most models for grouped bars with a legend; more are labelled next to their bars."""
_BARS_PER_ROW = 48


def bar_sheet(cells: Sequence[CellSummary], scale: float | None = None, preferred: float = 2.0) -> Figure:
    """Draw scores at one scale as bars, grouped by task: at 2x, Figure 1 of arXiv 2512.12167.

    Up to eight models are grouped by task, with a legend; more get one panel per task, with labels at the bars. Tasks
    whose score is not a percentage (losses) are ignored.

    Args:
        cells: cells of any tasks and scales.
        scale: length / training context, 0 for whole documents; when None, ``preferred`` or else the largest measured.
        preferred: default scale.

    Returns:
        The figure: bars in per cent with 95 % intervals.

    Raises:
        UserError: no score in per cent was measured, or none at ``scale``.
    """
    chosen = at_scale([summary for summary in cells if summary.percent], scale, preferred)
    if not chosen:
        raise UserError("no finished cell of these tasks has a score in per cent")
    plot_styles = assign_plot_styles(chosen)
    with style.styled():
        return _grouped(chosen, plot_styles) if len(plot_styles) <= _MAX_GROUPED else _panels(chosen, plot_styles)


def _grouped(cells: Sequence[CellSummary], plot_styles: dict[str, PlotStyle]) -> Figure:
    tasks = _tasks(cells)
    rows, columns = style.grid_of(len(tasks), max(1, _BARS_PER_ROW // (len(plot_styles) + 1)))
    width = min(style.PAGE, max(style.COLUMN, 0.19 * columns * (len(plot_styles) + 1) + 1.6))
    figure = style.new_figure(width, 1.85 * rows + 0.35)
    axes = figure.subplots(rows, 1, squeeze=False, sharey=True)[:, 0]
    bar_width = 0.84 / len(plot_styles)
    for row, axis in enumerate(axes):
        row_tasks = tasks[row * columns : (row + 1) * columns]
        for position, (name, plot_style) in enumerate(plot_styles.items()):
            by_task = {s.cell.task: s for s in cells if s.variant == name}
            drawn = [(index, by_task[task]) for index, task in enumerate(row_tasks) if task in by_task]
            _bars(axis, [index + bar_width * (position - (len(plot_styles) - 1) / 2) for index, _ in drawn],
                  [s for _, s in drawn], plot_style, bar_width, labels(cells)[name])  # fmt: skip
        axis.set_xticks(range(len(row_tasks)), [f"{_short(task)}\n{_sizes(task, cells)}" for task in row_tasks])
        axis.tick_params(axis="x", length=0)
        axis.set_xlim(-0.55, columns - 0.45)
        _percent(axis, "y", cells)
    figure.supylabel(f"score at {_where(cells)} (%)\nwith 95 % intervals", size=8)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", title=base_title(cells) or None, alignment="left")
    return figure


def _panels(cells: Sequence[CellSummary], plot_styles: dict[str, PlotStyle]) -> Figure:
    tasks = _tasks(cells)
    rows, columns = style.grid_of(len(tasks), 4)
    names = list(plot_styles)
    width = min(style.PAGE, 1.2 + 2.2 * columns)
    figure = style.new_figure(width, (0.14 * len(names) + 0.48) * rows + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(tasks) :]:
        axis.set_axis_off()
    for panel, (axis, task) in enumerate(zip(axes.flat, tasks, strict=False)):
        axis.tick_params(axis="x", labelbottom=panel + columns >= len(tasks))
        for summary in (s for s in cells if s.cell.task == task):
            position = float(names.index(summary.variant))
            _bars(axis, [position], [summary], plot_styles[summary.variant], 0.74, "", upright=False)
        absent = set(names) - {s.variant for s in cells if s.cell.task == task}
        for name in absent:
            # A bar of 0 % would look the same.
            axis.annotate("not measured", (0, names.index(name)), (2, 0), textcoords="offset points",
                          va="center", fontsize=5, color=style.FAINT)  # fmt: skip
        axis.set_yticks(range(len(names)), [labels(cells)[name] for name in names])
        axis.tick_params(axis="y", length=0)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_title(f"{task.removeprefix(PREFIX)}\n{_sizes(task, cells)}")
        _percent(axis, "x", cells)
    base = base_title(cells)
    figure.supxlabel(f"score at {_where(cells)}{f' on {base}' if base else ''} (%), with 95 % intervals", size=8)
    return figure


def _bars(
    axis: Axes,
    positions: Sequence[float],
    cells: Sequence[CellSummary],
    plot_style: PlotStyle,
    thickness: float,
    label: str,
    upright: bool = True,
) -> None:
    from matplotlib.patheffects import Normal, Stroke

    values = [displayed_interval(summary) for summary in cells]
    means = [mean for _, mean, _ in values]
    errors = [[mean - low for low, mean, _ in values], [high - mean for _, mean, high in values]]
    # Black with a white rim is visible on every bar and next to it.
    line: dict[str, Any] = {"fmt": "none", "ecolor": "black", "elinewidth": 0.8, "capsize": 0}
    rim = [Stroke(linewidth=1.6, foreground="white"), Normal()]
    if upright:
        axis.bar(positions, means, thickness * 0.94, label=label, **plot_style.bar())
        drawn = axis.errorbar(positions, means, yerr=errors, **line)
    else:
        axis.barh(positions, means, thickness, **plot_style.bar())
        drawn = axis.errorbar(means, positions, xerr=errors, **line)
    for bar in drawn.lines[2]:
        bar.set_path_effects(rim)


def _percent(axis: Axes, which: Literal["x", "y"], cells: Sequence[CellSummary]) -> None:
    # Bars must start at zero.
    (axis.set_ylim if which == "y" else axis.set_xlim)(0, axis_top(cells))
    axis.grid(visible=True, axis=which)


def _tasks(cells: Sequence[CellSummary]) -> list[str]:
    return sorted({summary.cell.task for summary in cells}, key=task_order)


def _short(task: str) -> str:
    """Return a task's name, broken into lines where it is long."""
    name = task.removeprefix(PREFIX)
    return name if len(name) <= 12 else name.replace("_", "_\n", 1)


def _sizes(task: str, cells: Sequence[CellSummary]) -> str:
    return sample_sizes(s for s in cells if s.cell.task == task)


def _where(cells: Sequence[CellSummary]) -> str:
    name = scale_name(cells[0].scale)
    return "natural length" if name == "natural" else name
