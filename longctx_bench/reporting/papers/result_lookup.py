"""Finding, among a folder's cells, the number that stands beside a published one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.types import NATURAL, length_name
from longctx_bench.metrics.length_buckets import BY_CONTEXT, scores_by_bucket
from longctx_bench.reporting.papers.paper_spec import IN_CONTEXT
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.stats.confidence_intervals import mean_interval
from longctx_bench.reporting.tables.base import Entry
from longctx_bench.reporting.tables.formatting import EMPTY, number

_BUCKETS = {bucket.name: bucket for bucket in BY_CONTEXT}


def require_models(cells: Iterable[CellSummary], models: Iterable[str]) -> None:
    """Refuse models that nothing was measured on.

    Raises:
        UserError: there is one.
    """
    known = sorted({summary.cell.model for summary in cells})
    for model in models:
        if model not in known:
            raise UserError(f"--base {model}: nothing was measured on it{did_you_mean(model, known)}")


class Measured:
    """The cells of one model, found by what a paper calls them."""

    def __init__(self, cells: Iterable[CellSummary], model: str) -> None:
        """Keep the model's own cells."""
        own = [summary for summary in cells if summary.cell.model == model]
        self._cells = {(s.cell.method, s.cell.task, s.cell.length): s for s in own}
        self._context = own[0].original_length if own else 0

    def cell(self, method: str, task: str, length: str) -> CellSummary | None:
        """Return the cell of a task at ``2x``, ``natural``, ``in-context`` or, for a bucket, of whole documents."""
        if length == IN_CONTEXT:
            tokens = self._context
        elif length == length_name(NATURAL) or length in _BUCKETS:
            tokens = NATURAL
        elif "-" in length or "+" in length:
            return None  # a bucket that is none of ours
        else:
            tokens = round(float(length.removesuffix("x")) * self._context)
        found = self._cells.get((method, task, tokens))
        # Tables of papers are in per cent here: a loss has no place among them.
        return found if found and found.percent else None

    def values(self, method: str, task: str, length: str) -> tuple[float, float, float, int] | None:
        """Return mean, interval and number of examples; None where nothing was measured."""
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
        """Return a mean with its interval, a bucket's with its number of examples; empty where nothing was measured."""
        values = self.values(method, task, length)
        if values is None:
            return EMPTY
        mean, low, high, n = values
        shown = number(mean, low, high, percent=True)
        return Entry(shown.text, f"{shown.detail} ({n})") if length in _BUCKETS else shown

    def parts(self, method: str, tasks: Sequence[tuple[str, str]]) -> list[CellSummary]:
        """Return the cells of an average over (task, length) pairs, as far as they were measured."""
        found = (self.cell(method, task, length) for task, length in tasks)
        return [summary for summary in found if summary is not None]

    def average(self, method: str, tasks: Sequence[tuple[str, str]]) -> float | None:
        """Return the mean over (task, length) pairs, in [0, 1]; None unless all of them were measured."""
        found = self.parts(method, tasks)
        return sum(summary.score for summary in found) / len(found) if len(found) == len(tasks) else None
