"""Results of a run: finished cells with scores and intervals, and a list of missing cells."""

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
from longctx_bench.reporting.parity_status import ParityStatus, parity_status, read_certificates
from longctx_bench.reporting.stats.confidence_intervals import mean_interval
from longctx_bench.store.bundle import bundle_hint, open_store
from longctx_bench.store.cell_folders import is_cell_path
from longctx_bench.store.reader import DamagedCellError, RecordColumns, count_records, read_columns, read_result
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import CellResult, TaskRecord, to_builtins

_RATES = frozenset(("acc", "acc_norm", "acc_bytes", "exact_match", "em", "f1", "contains"))
"""lm-eval metrics that are rates and shown in per cent."""

CAVEATS = {
    "uncommitted code": "measured by code with uncommitted changes",
    "local weights": "weights out of a local folder, known by their digest alone",
}
"""Gaps in a cell's provenance, as in CSV and as in the notes of tables."""


@dataclass(frozen=True)
class CellSummary:
    """One finished cell."""

    cell: Cell
    original_length: int
    metric: str
    score: float
    """Mean over examples, in [0, 1]; for losses, over tokens in nats."""
    low: float
    high: float
    """95 % interval of the mean."""
    n: int
    by_depth: dict[float, float]
    """Mean score by needle depth in percent, for tasks with a depth grid; else empty."""
    result: CellResult
    """Content of ``cell.json``."""
    scores: NDArray[np.float64] = field(compare=False, repr=False)
    """[n], ordered by example id."""
    hashes: NDArray[np.bytes_] = field(compare=False, repr=False)
    """[n] of S16: hashes of prompt and references, equal exactly for identical examples."""
    scored: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), compare=False, repr=False)
    """[n], number of tokens that each score averages over: 1 except for losses; empty where unknown."""
    points: tuple[ScoredExample, ...] = ()
    """Score and length of each example, for tasks with length buckets; else empty."""
    depths: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), compare=False, repr=False)
    """[n], needle depths in percent, where every example has exactly one needle; else empty."""
    parity: ParityStatus | None = None
    """Whether a vLLM result is certified against transformers; None for other engines."""

    @property
    def percent(self) -> bool:
        """Whether the score is shown in per cent; losses are not."""
        return is_percentage(self.result)

    @property
    def higher_is_better(self) -> bool:
        """Direction of the metric."""
        builtin = shipped_metric(self.metric)
        if builtin is not None:
            return builtin.higher_is_better
        if self.result.higher_is_better is not None:
            return self.result.higher_is_better
        return bool((self.result.lm_eval or {}).get("higher_is_better", True))

    @property
    def contributions(self) -> NDArray[np.float64]:
        """Contribution of each example to the score, [n]; their mean is the score. Input of intervals and tests."""
        return mean_contributions(self.scores, self.scored)

    @property
    def variant(self) -> str:
        """``METHOD-BASE``, the name that ``--model`` takes."""
        return f"{self.cell.method}-{self.cell.model}"

    @property
    def caveats(self) -> tuple[str, ...]:
        """Why others may be unable to measure the cell again: keys of :data:`CAVEATS`."""
        git = (self.result.environment or {}).get("git")
        sources = (self.result.spec.weights or {}, self.result.spec.model.source or {})
        uncommitted = isinstance(git, dict) and bool(git.get("dirty"))
        return tuple(
            caveat
            for caveat, applies in zip(CAVEATS, (uncommitted, any(s.get("path") for s in sources)), strict=True)
            if applies
        )

    @property
    def scale(self) -> float:
        """Length over training context."""
        return self.cell.length / self.original_length


def is_percentage(result: CellResult) -> bool:
    """Whether a metric's scores lie in [0, 1] and are shown in per cent: the same for all cells with that metric."""
    builtin = shipped_metric(result.metric)
    if builtin is not None:
        return builtin.percent
    return result.metric in _RATES if result.percent is None else result.percent


def mean_contributions(scores: NDArray[np.float64], scored: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return values [n] with the mean and the sampling variance of the mean over tokens (linearised ratio estimator).

    Args:
        scores: [n], each a mean over ``scored`` tokens.
        scored: [n] token counts, or empty. Where all counts are equal, the result is ``scores``.
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
    """One line per cell that was started and not finished: its progress, and the reason where known."""
    damaged: list[str] = field(default_factory=list)
    """One line per cell with damaged files."""

    @property
    def missing(self) -> list[str]:
        """One line per cell that no table shows."""
        return self.unfinished + self.damaged


def read_cells(folder: Path) -> Results:
    """Read all cells of a run's folder or of a bundle; damaged and unfinished ones are listed in the result.

    Raises:
        UserError: there are no results, or none that can be read.
    """
    return read_store(open_store(folder))


def read_store(store: ResultStore) -> Results:
    """Read all cells of an open folder or bundle, as :func:`read_cells` does."""
    folder = store.folder
    results = Results([], [], [])
    certificates = read_certificates(store.files)
    interned: dict[str, Any] = {}
    for path in store.folders():
        name = "/".join(path.parts[-4:])
        try:
            result = read_result(path)
            if result is None:
                results.unfinished.append(f"{name}: {_progress(path)}")
            else:
                results.finished.append(_summary(path, _intern_parts(result, interned), certificates))
        except DamagedCellError as error:
            results.damaged.append(f"{name}: {error}; delete its folder and run again")
    if not results.finished and not results.unfinished:
        if results.damaged:
            count = len(results.damaged)
            raise UserError(f"{folder}: none of its {count} cells can be read; the first is {results.damaged[0]}")
        problem = "holds no results" if folder.exists() else "no such folder"
        hint = bundle_hint(folder)
        if hint is not None:
            raise UserError(f"{folder}: {problem}; {hint}")
        if "runs" in folder.parts:
            run_folder = folder.parents[len(folder.parts) - folder.parts.index("runs") - 1]
            raise UserError(f"{folder}: {problem}; give the run's folder, {run_folder}")
        raise UserError(f"{folder}: {problem}; `longctx-bench run --out {folder}` makes one")
    return results


def _intern_parts(result: CellResult, interned: dict[str, Any]) -> CellResult:
    """Share equal parts between cells, such as engine and environment, to save memory."""
    spec = {name: _intern(getattr(result.spec, name), interned) for name in ("model", "weights", "method", "task")}
    fields = {name: _intern(getattr(result, name), interned) for name in ("applied", "engine", "environment")}
    return replace(result, spec=replace(result.spec, **spec), **fields)


def _intern(value: Any, interned: dict[str, Any]) -> Any:
    """Return the first value with the same content and type."""
    return interned.setdefault(f"{type(value).__name__} {json.dumps(to_builtins(value))}", value)


def _progress(path: Path) -> str:
    """Describe the progress of an unfinished cell."""
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
    if not is_cell_path(path, cell):
        raise DamagedCellError(f"its cell.json is that of {cell}")
    columns, metric = read_columns(path), result.metric
    if len(columns.scores) != result.n:
        raise DamagedCellError(f"records.jsonl holds {len(columns.scores)} whole examples, cell.json says {result.n}")
    if is_percentage(result) and ((columns.scores < 0) | (columns.scores > 1)).any():
        raise DamagedCellError(f"records.jsonl: a score of {metric} is not in [0, 1]")
    low, high = mean_interval(mean_contributions(columns.scores, columns.scored), is_percentage(result))
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
        # All ones, except for losses: broadcast to save memory.
        scored=np.broadcast_to(np.int64(1), columns.scored.shape) if (columns.scored == 1).all() else columns.scored,
        points=_points(columns) if buckets_of(cell.task, cell.length) else (),
        depths=columns.depths if (columns.needles == 1).all() else np.empty(0),
        parity=parity_status(result, certificates),
    )


def _has_grid(task: TaskRecord) -> bool:
    return task.grid is not None and bool((task.params or {}).get(task.grid))


def _points(columns: RecordColumns) -> tuple[ScoredExample, ...]:
    rows = zip(columns.scores.tolist(), columns.tokens.tolist(), columns.words.tolist(), strict=True)
    return tuple(ScoredExample(score, tokens, None if words < 0 else words) for score, tokens, words in rows)


def _by_depth(columns: RecordColumns) -> dict[float, float]:
    if not columns.needles.all():
        index = int(columns.needles.argmin())
        raise DamagedCellError(f"records.jsonl: example {index} has no depth, but its task has a depth grid")
    scores = {depth: columns.scores[columns.depths == depth].tolist() for depth in np.unique(columns.depths).tolist()}
    return {depth: sum(values) / len(values) for depth, values in scores.items()}
