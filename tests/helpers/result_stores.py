"""Result stores with scores that the test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longctx_bench.core.types import Cell, SampleRecord
from longctx_bench.store.run_store import ResultStore
from longctx_bench.store.schema import SCHEMA_VERSION, CellResult, CellSpec, parse_result, parse_spec, to_builtins

Scores = Mapping[tuple[str, str, int], Sequence[float]]
"""(method or METHOD@BASE, task, length) -> the examples' scores; of a needle task, its depths take turns."""


def spec_of(cell: Cell, spec: dict[str, Any], context: int = 512) -> CellSpec:
    """The spec of a cell of which a test says only what it cares for."""
    usual = {"seed": 42, "dtype": "float32", "engine": "hf", "chat_template": False, "task": {"name": cell.task}}
    return parse_spec({"cell": vars(cell), "original_length": context, "spec": usual | spec})


def result_of(cell: Cell, spec: CellSpec, **own: Any) -> CellResult:
    """The result of a cell of which a test says only what it cares for."""
    usual = {
        "cell": vars(cell), "original_length": spec.model.original_length, "metric": "string_match_all", "score": 0.5,
        "n": 1, "prompt_tokens": 100, "new_tokens": 10, "seconds": 1.0, "factor": 1.0, "factor_source": "derived",
        "exhausted": False, "spec_hash": spec.hash, "finished": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return parse_result(usual | own | {"schema_version": SCHEMA_VERSION, "spec": to_builtins(spec)})


def write_store(folder: Path, scores: Scores, context: int = 512, weights: Any = None, depths: int = 11) -> None:
    store = ResultStore(folder)
    for (who, task, length), values in scores.items():
        method, _, base = who.partition("@")
        cell = Cell(base or "tiny", method, task, length)
        params = {"depth_grid": depths} if task.startswith("niah") else {}
        metric = "token_loss" if task.startswith("perplexity") else "string_match_all"
        spec = spec_of(cell, {"task": {"name": task, "params": params}, "weights": weights}, context)
        store.start(cell, spec)
        records = [
            {"id": f"{place:06d}", "hash": f"{place:032x}", "score": value, "metric": metric, "prompt_tokens": length,
             "depths": [round(100 * (place % depths) / (depths - 1), 2)], "text": "", "references": []}
            for place, value in enumerate(values)
        ]  # fmt: skip
        store.append(cell, [SampleRecord(record, 0.1) for record in records])
        store.finish(cell, result_of(cell, spec, metric=metric, score=sum(values) / len(values), n=len(values)))
