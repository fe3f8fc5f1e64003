"""A paper's figures, drawn from measured results."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.figures.registry import FIGURE_KINDS, FigureInputs
from longctx_bench.reporting.papers.paper_spec import Paper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure


def paper_figures(paper: Paper, inputs: FigureInputs) -> Iterator[tuple[str, Figure | str]]:
    """Draw a paper's figures lazily.

    Args:
        paper: kind, tasks and methods of each figure.
        inputs: the run's folder and the models to draw.

    Yields:
        Name and figure, or name and the reason why it cannot be drawn.
    """
    for number, spec in paper.spec.figures.items():
        figure_inputs = replace(inputs, tasks=spec.tasks, methods=spec.methods, scale=spec.scale)
        name = f"figure-{number}"
        try:
            drawn = FIGURE_KINDS[spec.kind](figure_inputs)
        except UserError as error:
            yield name, f"{spec.title}: {error}"
            continue
        for suffix, figure in drawn.items():
            yield (name if len(drawn) == 1 else f"{name}-{suffix}"), figure
