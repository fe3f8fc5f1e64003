"""Score prediction files written by LongBench's and RULER's own scripts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.specs import require_mapping
from longctx_bench.core.untrusted_files import read_objects
from longctx_bench.metrics.length_buckets import BY_WORDS
from longctx_bench.registry import Registry

Scored = dict[str, tuple[float, int]]
"""By task (LongBench-E: task and bucket), the mean score in [0, 1] and the number of lines."""

_CONTROL = re.compile(r"[\x00-\x1f]")
_CHUNK = re.compile(r"-\d+$")


def score_folder(folder: Path, form: str, registry: Registry) -> Scored:
    """Score a folder of prediction files, named after their tasks.

    Args:
        folder: holds ``TASK.jsonl``, or one such folder per model.
        form: ``longbench`` (``pred/MODEL``), ``longbench-e`` (``pred_e/MODEL``, by word count) or ``ruler``.
        registry: has the tasks.

    Raises:
        UserError: no such files, an unknown task, or a malformed line; the message has its number.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files = sorted(folder.glob("*.jsonl")) or sorted(folder.glob("*/*.jsonl"))
    if not files:
        raise UserError(f"{folder}: holds no .jsonl files")
    tasks = registry.groups["ruler" if form == "ruler" else "longbench"]
    scores: dict[str, list[float]] = {}
    for file in files:
        # RULER leaves a task that several processes predicted in TASK-0.jsonl, TASK-1.jsonl, ...
        task = _CHUNK.sub("", file.stem) if form == "ruler" else file.stem
        if task not in tasks:
            raise UserError(f"{file}: '{task}' is no task of {form}{did_you_mean(task, tasks)}")
        name = task if file.parent == folder else f"{file.parent.name}/{task}"
        measure = registry.metric(registry.tasks[task]).metric
        for key, value in _READERS[form](file, measure.score):
            scores.setdefault(f"{name}{key}", []).append(value)
    return {name: (sum(values) / len(values), len(values)) for name, values in scores.items()}


def _longbench(file: Path, score: Any) -> Iterator[tuple[str, float]]:
    for _, value in _longbench_lines(file, score):
        yield "", value


def _longbench_e(file: Path, score: Any) -> Iterator[tuple[str, float]]:
    for number, (line, value) in enumerate(_longbench_lines(file, score), 1):
        length = line.get("length")
        if not isinstance(length, int):
            raise UserError(f"{file}: line {number}: 'length' is missing or not a whole number")
        bucket = next(bucket for bucket in BY_WORDS if bucket.low <= length < bucket.high)
        yield f" {bucket.name.removesuffix(' words')}", value


def _longbench_lines(file: Path, score: Any) -> Iterator[tuple[dict[str, Any], float]]:
    for number, line in enumerate(read_objects(file), 1):
        where = f"{file}: line {number}"
        prediction, answers = _text(line, "pred", where), _texts(line, "answers", where)
        classes = _texts(line, "all_classes", where) if line.get("all_classes") else []
        try:
            value = score(prediction, answers, classes)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        yield line, value


def _ruler(file: Path, score: Any) -> Iterator[tuple[str, float]]:
    for number, line in enumerate(read_objects(file), 1):
        where = f"{file}: line {number}"
        # As RULER's evaluate.py cleans a prediction before it is compared.
        text = _CONTROL.sub("\n", _text(line, "pred", where).strip()).strip()
        yield "", score(text, _texts(line, "outputs", where))


_READERS: dict[str, Callable[[Path, Any], Iterator[tuple[str, float]]]] = {
    "longbench": _longbench,
    "longbench-e": _longbench_e,
    "ruler": _ruler,
}


def _text(line: dict[str, Any], key: str, where: str) -> str:
    value = require_mapping(line, where).get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: '{key}' is missing or not text")
    return value


def _texts(line: dict[str, Any], key: str, where: str) -> list[str]:
    value = require_mapping(line, where).get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where}: '{key}' is missing or not a list of texts")
    return value
