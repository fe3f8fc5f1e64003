"""What a report is made of: finished cells with their scores, means and intervals, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import astuple, replace
from numpy.typing import NDArray

from longctx_bench.core.errors import UserError
from longctx_bench.core.sanitize import pluralize
from longctx_bench.core.types import Cell
from longctx_bench.core.untrusted_files import UnreadableFile, parse_object, read_content
from longctx_bench.metrics import shipped_metric
from longctx_bench.metrics.length_buckets import ScoredExample, buckets_of
from longctx_bench.reporting.parity_status import Standing, read_certificates, standing
from longctx_bench.reporting.stats.confidence_intervals import mean_interval
from longctx_bench.store.cell_folders import leads_to
from longctx_bench.store.reader import Columns, DamagedError, count_records, read_columns, read_result
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import CellResult, TaskRecord, plain

_RATES = frozenset(("acc", "acc_norm", "acc_bytes", "exact_match", "em", "f1", "contains"))
"""Metrics of lm-eval that are rates; its others are shown as they are."""


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
    result: CellResult
    """The whole ``cell.json``."""
    scores: NDArray[np.float64] = field(compare=False, repr=False)
    """[n], in the order of examples."""
    hashes: NDArray[np.bytes_] = field(compare=False, repr=False)
    """[n] of S16, of each example's prompt and references: equal where two cells had the same example."""
    scored: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), compare=False, repr=False)
    """[n], tokens that each example's score is the mean over: 1 but for losses; empty where that is not known."""
    points: tuple[ScoredExample, ...] = ()
    """Each example's score and length, where the task sorts its results by length."""
    depths: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), compare=False, repr=False)
    """[n], percent, where every example has exactly one needle; else empty."""
    parity: Standing | None = None
    """Whether a number of vLLM's is certified against transformers; None for other engines."""

    @property
    def percent(self) -> bool:
        """Whether the score is shown as per cent; a loss is not."""
        return in_percent(self.result)

    @property
    def higher_is_better(self) -> bool:
        """The score's direction."""
        known = shipped_metric(self.metric)
        if known is not None:
            return known.higher_is_better
        if self.result.higher_is_better is not None:
            return self.result.higher_is_better
        return bool((self.result.lm_eval or {}).get("higher_is_better", True))

    @property
    def values(self) -> NDArray[np.float64]:
        """Each example's contribution to the score, [n]: intervals and tests are made of them; their mean is it."""
        return contributions(self.scores, self.scored)

    @property
    def contestant(self) -> str:
        """``METHOD-BASE``."""
        return f"{self.cell.method}-{self.cell.model}"

    @property
    def scale(self) -> float:
        """Length over training context."""
        return self.cell.length / self.original_length


def in_percent(result: CellResult) -> bool:
    """Tell whether a metric's scores lie in [0, 1] and are shown in per cent: by its name, the same for all cells."""
    known = shipped_metric(result.metric)
    if known is not None:
        return known.percent
    return result.metric in _RATES if result.percent is None else result.percent


def contributions(scores: NDArray[np.float64], scored: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return values whose mean is the mean over tokens, and whose spread is that mean's (linearised ratio estimator).

    Args:
        scores: [n], each a mean over ``scored`` tokens.
        scored: [n], or empty; where all are the same, the values are the scores.
    """
    if not len(scored) or (scored == scored[0]).all():
        return scores
    weights = scored / scored.mean()
    mean = float((weights * scores).mean())
    return np.asarray(mean + weights * (scores - mean), dtype=np.float64)


@dataclass(frozen=True)
class Results:
    """All cells below a folder."""

    finished: list[CellSummary]
    unfinished: list[str]
    """One line for each cell that was begun and not finished: how far it came, and why it ended if that is known."""
    damaged: list[str] = field(default_factory=list)
    """One line for each cell whose files cannot be trusted."""

    @property
    def missing(self) -> list[str]:
        """All lines about cells that no table shows."""
        return self.unfinished + self.damaged


def read_cells(folder: Path) -> Results:
    """Read a run's folder; a cell that is damaged or not finished does not keep the others from being read.

    Raises:
        UserError: there are no results in it, or none that can be read.
    """
    store = ResultStore(folder)
    results = Results([], [], [])
    certificates = read_certificates(folder)
    known: dict[str, Any] = {}
    for path in store.folders():
        name = "/".join(path.parts[-4:])
        try:
            result = read_result(path)
            if result is None:
                results.unfinished.append(f"{name}: {_how_far(path)}")
            else:
                results.finished.append(_summary(path, _shared(result, known), certificates))
        except DamagedError as error:
            results.damaged.append(f"{name}: {error}; delete its folder and run again")
    if not results.finished and not results.unfinished:
        if results.damaged:
            count = len(results.damaged)
            raise UserError(f"{folder}: none of its {count} cells can be read; the first is {results.damaged[0]}")
        what = "holds no results" if folder.is_dir() else "no such folder"
        if "runs" in folder.parts:
            above = folder.parents[len(folder.parts) - folder.parts.index("runs") - 1]
            raise UserError(f"{folder}: {what}; name the run's folder itself, {above}")
        raise UserError(f"{folder}: {what}; `longctx-bench run --out {folder}` makes one")
    return results


def _shared(result: CellResult, known: dict[str, Any]) -> CellResult:
    """Return a cell's result; parts of it that other cells have as well, engine and environment, are theirs."""
    spec = {name: _first_of(getattr(result.spec, name), known) for name in ("model", "weights", "method", "task")}
    own = {name: _first_of(getattr(result, name), known) for name in ("applied", "engine", "environment")}
    return replace(result, spec=replace(result.spec, **spec), **own)


def _first_of(value: Any, known: dict[str, Any]) -> Any:
    """Return the first value that was seen with the same content and type."""
    return known.setdefault(f"{type(value).__name__} {json.dumps(plain(value))}", value)


def _how_far(path: Path) -> str:
    """Say what there is of a cell that is not finished."""
    examples = f"{pluralize(count_records(path), 'example')} so far"
    try:
        reason = parse_object(read_content(path / "started.json")).get("failed")
    except (FileNotFoundError, UnreadableFile):
        reason = None
    if reason:
        return f"failed ({reason}), {examples}; the same run command tries it again"
    return f"not finished, {examples}; the same run command completes it"


def _summary(path: Path, result: CellResult, certificates: Sequence[dict[str, Any]]) -> CellSummary:
    cell = Cell(*astuple(result.cell))
    if not leads_to(path, cell):
        raise DamagedError(f"its cell.json is that of {cell}")
    columns, metric = read_columns(path), result.metric
    if len(columns.scores) != result.n:
        raise DamagedError(f"records.jsonl holds {len(columns.scores)} whole examples, cell.json says {result.n}")
    if in_percent(result) and ((columns.scores < 0) | (columns.scores > 1)).any():
        raise DamagedError(f"records.jsonl: a score of {metric} is not in [0, 1]")
    low, high = mean_interval(contributions(columns.scores, columns.scored), in_percent(result))
    return CellSummary(
        cell=cell,
        original_length=result.original_length,
        metric=metric,
        score=result.score,
        low=low,
        high=high,
        n=result.n,
        by_depth=_by_depth(columns) if _has_grid(result.spec.task) else {},
        result=result,
        scores=columns.scores,
        hashes=columns.hashes,
        # Of all but losses it is 1, which need not be said a hundred thousand times.
        scored=np.broadcast_to(np.int64(1), columns.scored.shape) if (columns.scored == 1).all() else columns.scored,
        points=_points(columns) if buckets_of(cell.task, cell.length) else (),
        depths=columns.depths if (columns.needles == 1).all() else np.empty(0),
        parity=standing(result, certificates),
    )


def _has_grid(task: TaskRecord) -> bool:
    return task.grid is not None and bool((task.params or {}).get(task.grid))


def _points(columns: Columns) -> tuple[ScoredExample, ...]:
    found = zip(columns.scores.tolist(), columns.tokens.tolist(), columns.words.tolist(), strict=True)
    return tuple(ScoredExample(score, tokens, None if words < 0 else words) for score, tokens, words in found)


def _by_depth(columns: Columns) -> dict[float, float]:
    if not columns.needles.all():
        place = int(columns.needles.argmin())
        raise DamagedError(f"records.jsonl: example {place} has no depth, its task has a grid of them")
    scores = {depth: columns.scores[columns.depths == depth].tolist() for depth in np.unique(columns.depths).tolist()}
    return {depth: sum(values) / len(values) for depth, values in scores.items()}
