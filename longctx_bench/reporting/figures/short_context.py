"""Short-context scores: lm-eval tasks of the base model and its methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longctx_bench.benchmarks.lm_eval_task import PREFIX
from longctx_bench.core.errors import UserError
from longctx_bench.reporting.figures.score_bars import bar_sheet
from longctx_bench.reporting.results import CellSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def in_context_sheet(cells: Sequence[CellSummary], scale: float | None = None) -> Figure:
    """Draw the scores of lm-eval tasks, the unmodified model next to its methods: Figure 9 of arXiv 2512.12167.

    Args:
        cells: cells of any tasks; only lm-eval's are drawn.
        scale: maximum prompt length / training context; when None, 1x or else the largest measured.

    Returns:
        The figure, as :func:`~longctx_bench.reporting.figures.score_bars.bar_sheet` gives it.

    Raises:
        UserError: no task of lm-eval was measured, or none at ``scale``.
    """
    lm_eval_cells = [summary for summary in cells if summary.cell.task.startswith(PREFIX)]
    if not lm_eval_cells:
        raise UserError("no task of lm-eval was measured; run --tasks in_context --scale 1x first")
    return bar_sheet(lm_eval_cells, scale, preferred=1.0)
