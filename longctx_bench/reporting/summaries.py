"""What a report is made of: finished cells with their means and intervals, and the cells that are not finished."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longctx_bench.errors import UserError
from longctx_bench.metrics import METRICS
from longctx_bench.records import Cell
from longctx_bench.reporting.buckets import Point, buckets_of
from longctx_bench.reporting.intervals import mean_interval
from longctx_bench.store import ResultStore, read_json


@dataclass(frozen=True)
class CellSummary:
    """One finished cell."""

    cell: Cell
    original_length: int
    metric: str
    score: float
    """Mean over the examples, in [0, 1]."""
    low: float
    high: float
    """95 % interval of the mean."""
    n: int
    by_depth: dict[float, float]
    """Mean score by needle depth in percent, for tasks with one needle on a grid of depths; else empty."""
    details: dict[str, Any]
    """The whole ``cell.json``."""
    points: tuple[Point, ...] = ()
    """Each example's score and length, where the task sorts its results by length."""

    @property
    def percent(self) -> bool:
        """Whether the score is shown as per cent; a loss is not."""
        known = METRICS.get(self.metric)
        return known.percent if known else 0 <= self.score <= 1

    @property
    def higher_is_better(self) -> bool:
        """The score's direction."""
        known = METRICS.get(self.metric)
        return known.higher_is_better if known else bool(self.details.get("lm_eval", {}).get("higher_is_better", True))

    @property
    def contestant(self) -> str:
        """``METHOD-BASE``."""
        return f"{self.cell.method}-{self.cell.model}"

    @property
    def scale(self) -> float:
        """Length over training context."""
        return self.cell.length / self.original_length


@dataclass(frozen=True)
class Results:
    """All cells below a folder."""

    finished: list[CellSummary]
    unfinished: list[str]
    """One line for each cell that was begun and not finished."""


def read_cells(folder: Path) -> Results:
    """Read a run's folder.

    Raises:
        UserError: there are no results in it, or a file is damaged.
    """
    store = ResultStore(folder)
    finished, unfinished = [], []
    for path in store.folders():
        details = read_json(path / "cell.json")
        if details is None:
            unfinished.append(f"{'/'.join(path.parts[-4:])}: not finished; the same run command completes it")
            continue
        try:
            finished.append(_summary(store, details))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(
                f"{path}/cell.json: written by another version or damaged ({error!r:.80}); run it again"
            ) from error
    if not finished and not unfinished:
        raise UserError(f"{folder}: holds no results; `longctx-bench run --out {folder}` makes some")
    return Results(finished, unfinished)


def _summary(store: ResultStore, details: dict[str, Any]) -> CellSummary:
    cell = Cell(**details["cell"])
    records = store.records(cell)
    scores = [float(record["score"]) for record in records]
    known = METRICS.get(details["metric"])
    low, high = mean_interval(scores, known.percent if known else all(0 <= score <= 1 for score in scores))
    on_grid = (details["spec"]["task"]["params"] or {}).get("depth_grid")
    return CellSummary(
        cell=cell,
        original_length=details["original_length"],
        metric=details["metric"],
        score=details["score"],
        low=low,
        high=high,
        n=details["n"],
        by_depth=_by_depth(records) if on_grid else {},
        details=details,
        points=_points(records) if buckets_of(cell.task, cell.length) else (),
    )


def _points(records: list[dict[str, Any]]) -> tuple[Point, ...]:
    return tuple(
        Point(record["score"], record.get("document_tokens", record["prompt_tokens"]), record.get("words"))
        for record in records
    )


def _by_depth(records: list[dict[str, Any]]) -> dict[float, float]:
    scores: dict[float, list[float]] = defaultdict(list)
    for record in records:
        scores[record["depths"][0]].append(record["score"])
    return {depth: sum(values) / len(values) for depth, values in sorted(scores.items())}
