"""Scoring text that was generated elsewhere."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from longctx_bench.errors import UserError
from longctx_bench.metrics import Metric, metric
from longctx_bench.registry import Registry
from longctx_bench.store import read_lines


def score_file(path: Path, task: str | None = None, registry: Registry | None = None) -> dict[str, tuple[float, int]]:
    """Score a JSON-lines file of predictions.

    Args:
        path: lines with ``prediction``, ``references`` and, unless ``task`` is given, ``task``.
        task: the task of every line.
        registry: knows the tasks; the built-in ones by default.

    Returns:
        By task, the mean score in [0, 1] and the number of lines.

    Raises:
        UserError: the file cannot be read, or a line lacks something, with its number.
    """
    registry = registry or Registry()
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    scores: dict[str, list[float]] = defaultdict(list)
    for number, line in enumerate(read_lines(path), 1):
        name = task or line.get("task")
        if not name:
            raise UserError(f"{path}: line {number} names no 'task'; add one or use --task")
        scores[name].append(_score(_metric(registry, name), line, f"{path}: line {number}"))
    if not scores:
        raise UserError(f"{path}: holds no lines")
    return {name: (sum(values) / len(values), len(values)) for name, values in scores.items()}


def _metric(registry: Registry, task: str) -> Metric:
    return metric(registry.select_tasks(task)[0].metric)


def _score(measure: Metric, line: dict[str, Any], where: str) -> float:
    prediction, references = line.get("prediction"), line.get("references")
    if not isinstance(prediction, str):
        raise UserError(f"{where}: 'prediction' is missing or not text")
    if not isinstance(references, list) or not references or not all(isinstance(item, str) for item in references):
        raise UserError(f"{where}: 'references' is missing or not a list of texts")
    return measure.score(prediction, references)
