"""Cells as a report reads them, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from longctx_bench.core.types import Cell
from longctx_bench.metrics.length_buckets import ScoredExample
from longctx_bench.reporting.results import CellSummary, mean_contributions
from longctx_bench.reporting.stats.confidence_intervals import mean_interval
from longctx_bench.store.schema import parse_result


def cell(
    name: str,
    scores: Sequence[float],
    length: int = 1024,
    task: str = "niah",
    model: str = "tiny",
    *,
    metric: str = "string_match_all",
    context: int = 512,
    prompts: str = "a",
    task_spec: dict[str, Any] | None = None,
    spec: dict[str, Any] | None = None,
    details: dict[str, Any] | None = None,
    depths: Sequence[float] = (),
    points: Sequence[ScoredExample] = (),
    scored: Sequence[int] = (),
) -> CellSummary:
    """Return a finished cell of the method ``name``; cells with the same ``prompts`` share their examples."""
    values = np.array(scores, dtype=np.float64)
    bounded = metric != "token_loss"
    tokens = np.array(scored, dtype=np.int64)
    counted = mean_contributions(values, tokens)
    low, high = mean_interval(counted, bounded)
    whole_spec = {"seed": 42, "dtype": "bfloat16", "engine": "hf", "chat_template": False, "length": length} | (
        spec or {}
    )
    whole_spec["task"] = {"name": task, "metric": metric, "protocol": "longctx-bench", "params": {}} | (task_spec or {})
    known = {
        "cell": {"model": model, "method": name, "task": task, "length": length},
        "original_length": context,
        "metric": metric,
        "score": float(counted.mean()),
        "n": max(1, len(values)),
        "finished": "2026-01-01T00:00:00+00:00",
        "factor": length / context,
        "factor_source": "derived",
        "spec_hash": f"{name}-{length}",
        "seconds": 2.0,
        "prompt_tokens": 12_345,
        "new_tokens": 678,
        "engine": {"device": "cpu"},
        "spec": whole_spec,
    }
    places = np.array(depths, dtype=np.float64)
    return CellSummary(
        cell=Cell(model, name, task, length),
        original_length=context,
        metric=metric,
        score=float(counted.mean()),
        low=low,
        high=high,
        n=len(values),
        by_depth={float(depth): float(values[places == depth].mean()) for depth in np.unique(places)},
        result=parse_result(known | (details or {})),
        scores=values,
        hashes=np.array([f"{prompts}{task}{length}{place:04d}" for place in range(len(values))], dtype="S32"),
        scored=tokens,
        points=tuple(points),
        depths=places,
    )


def hits(successes: int, n: int = 100) -> list[float]:
    """Return ``n`` scores of which the first ``successes`` are 1."""
    return [1.0] * successes + [0.0] * (n - successes)
