"""Lookup of the measured counterpart of a published number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from longctx_bench.core.argument_parsing import parse_lengths
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

    def __init__(self, cells: Iterable[CellSummary], model: str, perplexity: bool = False) -> None:
        """Index the cells of ``model``: those in per cent, or the losses, which are shown as perplexities."""
        self._perplexity = perplexity
        self.unit, self.digits = (1, 2) if perplexity else (100, 1)
        model_cells = [summary for summary in cells if summary.cell.model == model]
        self._cells = {(s.cell.method, s.cell.task, s.cell.length): s for s in model_cells}
        self._context = model_cells[0].original_length if model_cells else 0

    def cell(self, method: str, task: str, length: str) -> CellSummary | None:
        """Return the cell at ``2x``, ``8k``, ``natural`` or ``in-context``; for a bucket, that of whole documents."""
        if length == IN_CONTEXT:
            tokens = self._context
        elif length == length_name(NATURAL) or length in _BUCKETS:
            tokens = NATURAL
        elif "-" in length or "+" in length:
            return None  # an unknown bucket
        elif length.endswith("x"):
            tokens = round(float(length.removesuffix("x")) * self._context)
        else:
            (tokens,) = parse_lengths(length)
        summary = self._cells.get((method, task, tokens))
        if summary is None:
            return None
        # A loss is no percentage, and nothing but a loss has a perplexity.
        fits = summary.metric == "token_loss" if self._perplexity else summary.percent
        return summary if fits else None

    def values(self, method: str, task: str, length: str) -> tuple[float, float, float, int] | None:
        """Return (mean, low, high, n), in [0, 1] or as perplexities; None where nothing was measured."""
        summary = self.cell(method, task, length)
        if summary is None:
            return None
        if self._perplexity:
            return math.exp(summary.score), math.exp(summary.low), math.exp(summary.high), summary.n
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
        shown = interval_entry(mean, low, high, percent=not self._perplexity)
        return Entry(shown.text, f"{shown.detail} ({n})") if length in _BUCKETS else shown

    def measured_cells(self, method: str, tasks: Sequence[tuple[str, str]]) -> list[CellSummary]:
        """Return the measured cells among (task, length) pairs."""
        cells = (self.cell(method, task, length) for task, length in tasks)
        return [summary for summary in cells if summary is not None]

    def average(self, method: str, tasks: Sequence[tuple[str, str]]) -> float | None:
        """Return the mean over (task, length) pairs, as :meth:`values` has them; None unless all were measured."""
        cells = self.measured_cells(method, tasks)
        scores = [math.exp(summary.score) if self._perplexity else summary.score for summary in cells]
        return sum(scores) / len(scores) if len(scores) == len(tasks) else None
