"""Selection of cells by scale, task order, and axis labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import NATURAL
from longctx_bench.reporting.results import CellSummary

_NEEDLES_FIRST = (
    "niah", "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey", "niah_multikey_1", "niah_multikey_2",
    "niah_multikey_3", "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
)  # fmt: skip
"""RULER's tasks in the order of arXiv 2404.06654, with the DroPE paper's tasks among them; others follow by name."""


def task_order(task: str) -> tuple[int, str]:
    """Sort key of tasks: needle tasks, the rest of RULER, then others by name."""
    name = task.partition("@")[0]
    return _NEEDLES_FIRST.index(name) if name in _NEEDLES_FIRST else len(_NEEDLES_FIRST), task


def at_scale(cells: Sequence[CellSummary], scale: float | None, preferred: float = 2.0) -> list[CellSummary]:
    """Return the cells at one scale (length / training context).

    Args:
        cells: of any scales; those of whole documents have scale 0.
        scale: the scale; when None, ``preferred`` where something was measured there, else the largest measured.
        preferred: 2 is that of Figure 1 of arXiv 2512.12167.

    Raises:
        UserError: nothing was measured at ``scale``.
    """
    scales = sorted({summary.scale for summary in cells})
    if not scales:
        return []
    chosen = scale if scale is not None else preferred if preferred in scales else scales[-1]
    if chosen not in scales:
        measured = ", ".join(map(scale_name, scales))
        raise UserError(f"--scale {scale_name(chosen)}: not measured; measured: {measured}")
    return [summary for summary in cells if summary.scale == chosen]


def sample_sizes(cells: Iterable[CellSummary]) -> str:
    """Return the number of examples per score, or its range, as text."""
    counts = sorted({summary.n for summary in cells})
    return "n = " + " to ".join(f"{count:,}" for count in sorted({counts[0], counts[-1]}))


def scale_name(scale: float) -> str:
    """Return a scale as text, such as ``2x``; ``natural`` for whole documents."""
    return "natural" if scale == NATURAL else f"{scale:g}x"


def score_unit(summary: CellSummary) -> str:
    """Return the unit of a score."""
    if summary.percent:
        return "%"
    return "nats a token" if summary.metric == "token_loss" else "score"


def axis_label(cells: Sequence[CellSummary]) -> str:
    """Return an axis label, such as ``string match all (%)``; several metrics of one unit are a ``score``."""
    metrics = {summary.metric for summary in cells}
    what = next(iter(metrics)).replace("_", " ") if len(metrics) == 1 else "score"
    return f"{what} ({score_unit(cells[0])})"


def displayed_interval(summary: CellSummary) -> tuple[float, float, float]:
    """Return low, mean and high in the unit of :func:`score_unit`."""
    factor = 100.0 if summary.percent else 1.0
    return factor * summary.low, factor * summary.score, factor * summary.high


def axis_top(cells: Sequence[CellSummary]) -> float:
    """Return the upper end of a percentage axis: 100, or less where all scores are low."""
    highest = max((displayed_interval(summary)[2] for summary in cells), default=100.0)
    return 100.0 if highest > 50 else 10.0 * math.ceil(max(highest, 1.0) / 10)
