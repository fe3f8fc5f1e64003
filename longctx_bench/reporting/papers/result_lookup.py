"""Lookup of the measured counterpart of a published number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.types import NATURAL, length_name
from longctx_bench.metrics.length_buckets import BY_CONTEXT, scores_by_bucket
from longctx_bench.reporting.papers.paper_spec import IN_CONTEXT
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.stats.confidence_intervals import mean_interval
from longctx_bench.reporting.tables.base import Entry
from longctx_bench.reporting.tables.formatting import EMPTY, interval_entry

_BUCKETS = {bucket.name: bucket for bucket in BY_CONTEXT}


def require_models(cells: Iterable[CellSummary], models: Iterable[str]) -> None:
    """Check that every model was measured.

    Raises:
        UserError: one was not.
    """
    measured = sorted({summary.cell.model for summary in cells})
    for model in models:
        if model not in measured:
            raise UserError(f"--base {model}: not measured{did_you_mean(model, measured)}")


class ResultLookup:
    """Cells of one base model, by a paper's names of methods, tasks and lengths."""

    def __init__(self, cells: Iterable[CellSummary], model: str) -> None:
        """Index the cells of ``model``."""
        model_cells = [summary for summary in cells if summary.cell.model == model]
        self._cells = {(s.cell.method, s.cell.task, s.cell.length): s for s in model_cells}
        self._context = model_cells[0].original_length if model_cells else 0

    def cell(self, method: str, task: str, length: str) -> CellSummary | None:
        """Return the cell at ``2x``, ``natural`` or ``in-context``; for a bucket, that of whole documents."""
        if length == IN_CONTEXT:
            tokens = self._context
        elif length == length_name(NATURAL) or length in _BUCKETS:
            tokens = NATURAL
        elif "-" in length or "+" in length:
            return None  # an unknown bucket
        else:
            tokens = round(float(length.removesuffix("x")) * self._context)
        summary = self._cells.get((method, task, tokens))
        # Paper tables are in per cent, so losses are left out.
        return summary if summary and summary.percent else None

    def values(self, method: str, task: str, length: str) -> tuple[float, float, float, int] | None:
        """Return (mean, low, high, n); None where nothing was measured."""
        summary = self.cell(method, task, length)
        if summary is None:
            return None
        if length not in _BUCKETS:
            return summary.score, summary.low, summary.high, summary.n
        scores = scores_by_bucket(summary.points, (_BUCKETS[length],), summary.original_length)[length]
        if not scores:
            return None
        return sum(scores) / len(scores), *mean_interval(scores, summary.percent), len(scores)

    def entry(self, method: str, task: str, length: str) -> Entry:
        """Return a mean with its interval, for buckets also n; empty where nothing was measured."""
        values = self.values(method, task, length)
        if values is None:
            return EMPTY
        mean, low, high, n = values
        shown = interval_entry(mean, low, high, percent=True)
        return Entry(shown.text, f"{shown.detail} ({n})") if length in _BUCKETS else shown

    def measured_cells(self, method: str, tasks: Sequence[tuple[str, str]]) -> list[CellSummary]:
        """Return the measured cells among (task, length) pairs."""
        cells = (self.cell(method, task, length) for task, length in tasks)
        return [summary for summary in cells if summary is not None]

    def average(self, method: str, tasks: Sequence[tuple[str, str]]) -> float | None:
        """Return the mean over (task, length) pairs, in [0, 1]; None unless all were measured."""
        cells = self.measured_cells(method, tasks)
        return sum(summary.score for summary in cells) / len(cells) if len(cells) == len(tasks) else None
