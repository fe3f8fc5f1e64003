"""What a method costs at the original context: lm-eval's tasks before and after."""

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
    """Draw the scores of lm-eval's tasks, the untouched model beside its methods: Figure 9 of arXiv 2512.12167.

    Args:
        cells: of any tasks; those that lm-eval did not run are left out.
        scale: of the most tokens that a prompt may have; 1x when None, or the largest there is.

    Returns:
        The figure, as :func:`~longctx_bench.reporting.figures.score_bars.bar_sheet` gives it.

    Raises:
        UserError: no task of lm-eval was measured, or none at ``scale``.
    """
    own = [summary for summary in cells if summary.cell.task.startswith(PREFIX)]
    if not own:
        raise UserError("no task of lm-eval was measured; run --tasks in_context --scale 1x first")
    return bar_sheet(own, scale, preferred=1.0)
