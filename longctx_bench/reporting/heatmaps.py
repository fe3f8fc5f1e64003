"""The needle heatmaps: depth by length, all models on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longctx_bench.errors import UserError
from longctx_bench.files import replacing
from longctx_bench.reporting.summaries import CellSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = "viridis"
"""Perceptually even, safe for colour-blind readers, and in order when printed grey."""


def heatmap_sheet(cells: Sequence[CellSummary], path: Path) -> Path:
    """Draw depth x length heatmaps of all contestants on one sheet with one colour scale.

    Args:
        cells: those of one task with needles on a grid of depths.
        path: the file to write; its ending chooses the format (png, pdf, svg).

    Returns:
        The path.

    Raises:
        UserError: no cell has a grid of depths.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    gridded = [summary for summary in cells if summary.by_depth]
    if not gridded:
        raise UserError("no finished cell has a grid of depths; run the task niah first")
    names = sorted({summary.contestant for summary in gridded})
    names.sort(key=lambda name: not name.startswith("rope-"))
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns + 1.0, 2.5 * rows + 0.5), squeeze=False, sharey=True, layout="constrained"
    )
    image: Any = None
    for place, axis in enumerate(axes.flat):
        if place >= len(names):
            axis.set_axis_off()
            continue
        own = sorted((s for s in gridded if s.contestant == names[place]), key=lambda s: s.cell.length)
        image = _heatmap(axis, own)
        if place % columns == 0:
            axis.set_ylabel("needle depth (%)")
        if place // columns == rows - 1 or place + columns >= len(names):
            axis.set_xlabel("length (tokens)")
    bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=30, pad=0.02)
    bar.set_label("score (%)")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=200)
    plt.close(figure)
    return path


def _heatmap(axis: Axes, cells: Sequence[CellSummary]) -> Any:
    depths = sorted({depth for summary in cells for depth in summary.by_depth})
    grid = [[100 * s.by_depth[depth] if depth in s.by_depth else float("nan") for s in cells] for depth in depths]
    image = axis.imshow(grid, cmap=_COLOURS, vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    axis.set_title(cells[0].contestant, fontsize=9)
    axis.set_xticks(range(len(cells)), [f"{s.cell.length}\n{s.scale:g}x" for s in cells], fontsize=7)
    shown = range(0, len(depths), max(1, len(depths) // 5))
    axis.set_yticks(list(shown), [f"{depths[place]:g}" for place in shown], fontsize=7)
    inside = sum(summary.scale <= 1 for summary in cells)
    if 0 < inside < len(cells):
        # Right of this line lies what the model was never trained on.
        axis.axvline(inside - 0.5, color="white", linewidth=1.5, linestyle="--")
    return image
