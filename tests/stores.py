"""Result stores with scores that the test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longctx_bench.records import Cell, Finished
from longctx_bench.store import ResultStore, spec_hash

Scores = Mapping[tuple[str, str, int], Sequence[float]]
"""(method or METHOD@BASE, task, length) -> the examples' scores; of a needle task, its depths take turns."""


def write_store(folder: Path, scores: Scores, context: int = 512, weights: Any = None, depths: int = 11) -> None:
    store = ResultStore(folder)
    for (who, task, length), values in scores.items():
        method, _, base = who.partition("@")
        cell = Cell(base or "tiny", method, task, length)
        params = {"depth_grid": depths} if task.startswith("niah") else {}
        metric = "token_loss" if task.startswith("perplexity") else "string_match_all"
        spec = {
            "task": {"name": task, "params": params},
            "seed": 42,
            "dtype": "float32",
            "engine": "hf",
            "chat_template": False,
        }
        spec["weights"] = weights
        store.start(cell, spec)
        records = [
            {"id": f"{place:06d}", "hash": f"{place:032x}", "score": value, "metric": metric, "prompt_tokens": length,
             "depths": [round(100 * (place % depths) / (depths - 1), 2)], "text": "", "references": []}
            for place, value in enumerate(values)
        ]  # fmt: skip
        store.append(cell, [Finished(record, 0.1) for record in records])
        store.finish(cell, {
            "cell": {"model": cell.model, "method": method, "task": task, "length": length},
            "original_length": context, "metric": metric, "score": sum(values) / len(values), "n": len(values),
            "prompt_tokens": 100, "new_tokens": 10, "finished": "2026-01-01T00:00:00+00:00",
            "seconds": 1.0, "factor": 1.0, "factor_source": "derived", "spec_hash": spec_hash(spec), "spec": spec,
        })  # fmt: skip
