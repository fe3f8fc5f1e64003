"""Task heatmap: models x tasks at one scale, such as RULER's 13 tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.figures import style
from longctx_bench.reporting.figures.cell_selection import at_scale, sample_sizes, scale_name, task_order
from longctx_bench.reporting.figures.plot_styles import assign_plot_styles, base_title, labels
from longctx_bench.reporting.results import CellSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def task_table(cells: Sequence[CellSummary], scale: float | None = None) -> Figure:
    """Draw scores as a heatmap, one row per model and one column per task.

    Args:
        cells: cells of any tasks and scales; scores that are not in per cent are ignored.
        scale: length / training context, 0 for whole documents; when None, 2 or else the largest measured.

    Returns:
        The figure: scores in per cent, printed in each field; empty fields were not measured.

    Raises:
        UserError: no score in per cent was measured, or none at ``scale``.
    """
    import numpy as np

    chosen = at_scale([summary for summary in cells if summary.percent], scale)
    if not chosen:
        raise UserError("no finished cell of these tasks has a score in per cent")
    names = list(assign_plot_styles(chosen))
    tasks = sorted({s.cell.task for s in chosen}, key=task_order)
    scores = {(s.variant, s.cell.task): 100 * s.score for s in chosen}
    grid = np.array([[scores.get((name, task), math.nan) for task in tasks] for name in names])
    with style.styled():
        width = min(style.PAGE, 2.1 + 0.38 * len(tasks))
        figure = style.new_figure(width, 1.35 + 0.17 * len(names))
        axis = figure.subplots()
        axis.set_facecolor("#E4E4E4")
        image = axis.imshow(grid, cmap=style.SHADES, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
        for (row, column), score in np.ndenumerate(grid):
            if not math.isnan(score):
                colour = "white" if score < 60 else "black"
                axis.text(column, row, f"{score:.0f}", ha="center", va="center", fontsize=6, color=colour)
        axis.set_xticks(range(len(tasks)), [task.removeprefix("lm_eval:") for task in tasks], rotation=40, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        axis.set_yticks(range(len(names)), [labels(chosen)[name] for name in names])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        where = scale_name(chosen[0].scale)
        base = base_title(chosen)
        bar = figure.colorbar(image, ax=axis, aspect=18, pad=0.02)
        bar.set_label(
            f"score at {where}{f' on {base}' if base else ''} (%)\n{sample_sizes(chosen)} per cell", fontsize=7
        )
        bar.outline.set_linewidth(0.5)
    return figure
