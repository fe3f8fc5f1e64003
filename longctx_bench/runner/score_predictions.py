"""Score generations of other software from a JSON-lines file."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.specs import require_mapping
from longctx_bench.core.untrusted_files import read_objects
from longctx_bench.metrics import Metric
from longctx_bench.registry import Registry


def score_file(path: Path, task: str | None = None, registry: Registry | None = None) -> dict[str, tuple[float, int]]:
    """Score a JSON-lines file of predictions.

    Args:
        path: lines with ``prediction``, ``references`` (for classification ``classes``) and, unless ``task`` is
            given, ``task``.
        task: the task of every line.
        registry: has the tasks; the built-in one if None.

    Returns:
        By task, the mean score in [0, 1] and the number of lines.

    Raises:
        UserError: the file cannot be read, or a line is incomplete; the message has its number.
    """
    registry = registry or Registry()
    if path.is_dir():
        raise UserError(f"{path}: is a folder; prediction files of others are read with --format longbench or ruler")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    scores: dict[str, list[float]] = defaultdict(list)
    for number, line in enumerate(read_objects(path), 1):
        where = f"{path}: line {number}"
        name = task or require_mapping(line, where).get("task")
        if not isinstance(name, str):
            raise UserError(f"{where} names no 'task'; add one or use --task")
        if name not in registry.tasks:
            raise UserError(f"{where}: unknown task '{name}'{did_you_mean(name, registry.tasks)}")
        scores[name].append(_score(registry.metric(registry.tasks[name]).metric, require_mapping(line, where), where))
    if not scores:
        raise UserError(f"{path}: holds no lines")
    return {name: (sum(values) / len(values), len(values)) for name, values in scores.items()}


def _score(measure: Metric, line: dict[str, Any], where: str) -> float:
    prediction, references = line.get("prediction"), line.get("references")
    if not isinstance(prediction, str):
        raise UserError(f"{where}: 'prediction' is missing or not text")
    if not isinstance(references, list) or not references or not all(isinstance(item, str) for item in references):
        raise UserError(f"{where}: 'references' is missing or not a list of texts")
    classes = line.get("classes") or []
    if not isinstance(classes, list) or not all(isinstance(item, str) for item in classes):
        raise UserError(f"{where}: 'classes' is not a list of texts")
    return measure.score(prediction, references, tuple(classes))
