"""A kind of figure: each cell's scores as a histogram, where a mean hides two kinds of examples."""

from __future__ import annotations

from matplotlib.figure import Figure

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.figures.registry import FigureInputs, FiguresByName


def draw(material: FigureInputs) -> FiguresByName:
    """Return one figure per task.

    Raises:
        UserError: nothing was measured.
    """
    tasks = sorted({cell.cell.task for cell in material.cells})
    if not tasks:
        raise UserError(f"{material.folder}: has no scores to draw")
    made = {}
    for task in tasks:
        cells = [cell for cell in material.cells if cell.cell.task == task]
        figure = Figure(figsize=(3.3 * len(cells), 2.4), layout="constrained")
        for place, cell in enumerate(cells, 1):
            axes = figure.add_subplot(1, len(cells), place)
            axes.hist(cell.scores, bins=10, color="0.4")
            axes.set_title(f"{cell.variant}, {cell.cell.length:,} tokens", fontsize=9)
            axes.set_xlabel(cell.metric)
            axes.set_ylabel("examples")
        made[f"{task}-histogram"] = figure
    return made
