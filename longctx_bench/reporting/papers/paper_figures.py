"""A paper's figures, drawn from what was measured here."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from longctx_bench.core.errors import UserError
from longctx_bench.reporting.figures.registry import FIGURE_KINDS, FigureInputs
from longctx_bench.reporting.papers.paper_spec import Paper

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure


def paper_figures(paper: Paper, material: FigureInputs) -> Iterator[tuple[str, Figure | str]]:
    """Draw a paper's figures one after the other.

    Args:
        paper: says which kind of ours each figure is, and over which tasks and methods.
        material: the run's folder, and the models to draw.

    Yields:
        Name and figure, or name and why it cannot be drawn yet.
    """
    for number, wanted in paper.spec.figures.items():
        own = replace(material, tasks=wanted.tasks, methods=wanted.methods, scale=wanted.scale)
        name = f"figure-{number}"
        try:
            drawn = FIGURE_KINDS[wanted.kind](own)
        except UserError as error:
            yield name, f"{wanted.title}: {error}"
            continue
        for suffix, figure in drawn.items():
            yield (name if len(drawn) == 1 else f"{name}-{suffix}"), figure
