"""Cost tables: speed, tokens, wall time, peak memory, and training tokens of the checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import attrgetter

from longctx_bench.core.io import safe_name
from longctx_bench.core.sources import shipped_checkpoint_folder
from longctx_bench.core.types import NATURAL
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.tables.base import Table
from longctx_bench.reporting.tables.footnotes import caveat_notes
from longctx_bench.reporting.tables.formatting import (
    caveats_of,
    cell_columns,
    contexts_of,
    length_heading,
    row_of,
    rows_of,
    tasks_of,
)

_TOKENS_SEEN = re.compile(r"^\| tokens seen \| ([\d,]+) \|$", re.MULTILINE)
"""The row of a model card with the number of training tokens (``longctx_bench/training/model_card.py``)."""


def cost_tables(cells: Sequence[CellSummary]) -> list[Table]:
    """Return one table per task, one row per cell; columns without any value are left out."""
    return [_cost(task, [summary for summary in cells if summary.cell.task == task]) for task in tasks_of(cells)]


def examples_per_second(summary: CellSummary) -> float | None:
    """Return examples per second; None where no time is stored."""
    seconds = summary.result.seconds
    return summary.n / seconds if seconds > 0 else None


def peak_memory(summary: CellSummary) -> int | None:
    """Return the peak memory in bytes; None where it is not stored."""
    return summary.result.peak_memory or None


def training_tokens(summary: CellSummary) -> int | None:
    """Return the number of training tokens of the checkpoint, from the cell or the model card; None where unknown."""
    if summary.result.training_tokens:
        return summary.result.training_tokens
    spec = summary.result.spec
    weights = spec.weights or spec.model.source or {}
    return _tokens_on_card(str(weights["embedded"])) if weights.get("embedded") else None


@lru_cache
def _tokens_on_card(name: str) -> int | None:
    card = shipped_checkpoint_folder(safe_name(name)) / "README.md"
    match = _TOKENS_SEEN.search(card.read_text(encoding="utf-8")) if card.is_file() else None
    return int(match[1].replace(",", "")) if match else None


def _device(summary: CellSummary) -> str:
    return str((summary.result.engine or {}).get("device", ""))


def _three_digits(value: float) -> str:
    """Round to three significant digits, the reproducibility of timings."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


_COLUMNS: tuple[tuple[str, str, Callable[[CellSummary], float | None], Callable[[float], str]], ...] = (
    ("examples/s", "examples_per_second", examples_per_second, _three_digits),
    ("wall time (s)", "seconds", attrgetter("result.seconds"), _three_digits),
    ("prompt tokens", "prompt_tokens", attrgetter("result.prompt_tokens"), lambda value: f"{value:,}"),
    ("new tokens", "new_tokens", attrgetter("result.new_tokens"), lambda value: f"{value:,}"),
    ("peak memory (GiB)", "peak_memory", peak_memory, lambda value: _three_digits(value / 2**30)),
    ("training tokens (M)", "training_tokens", training_tokens, lambda value: f"{value / 1e6:,.0f}"),
)
"""Heading, CSV column, value, and formatting."""


def _cost(task: str, cells: Sequence[CellSummary]) -> Table:
    names, contexts = rows_of(cells), contexts_of(cells)
    order = {row: index for index, row in enumerate(names)}
    cells = sorted(cells, key=lambda s: (s.cell.length == NATURAL, s.cell.length, order[row_of(s)]))
    values = {key: [value(summary) for summary in cells] for _, key, value, _ in _COLUMNS}
    shown = [column for column in _COLUMNS if any(value is not None for value in values[column[1]])]
    devices = sorted({_device(summary) for summary in cells} - {""})
    rows, records = [], []
    for index, summary in enumerate(cells):
        row = [names[row_of(summary)], length_heading(summary.cell.length, contexts), f"{summary.n:,}"]
        row_values = [(show, values[key][index]) for _, key, _, show in shown]
        row += ["" if value is None else show(value) for show, value in row_values]
        rows.append((*row, *([_device(summary)] if len(devices) > 1 else [])))
        record = cell_columns(summary) | {"n": summary.n} | {key: values[key][index] for _, key, _, _ in shown}
        records.append(record | {"device": _device(summary), "caveats": caveats_of([summary])})
    heads = ["model", "length", "n", *(title for title, *_ in shown), *(["device"] if len(devices) > 1 else [])]
    notes = [f"device: {devices[0]}"] if len(devices) == 1 else []
    if len(devices) > 1:
        notes.append("speed and time compare only rows of one device")
    notes.append("wall time: of the examples' batches over all runs of a cell, without the loading of weights")
    if any(summary.result.lm_eval for summary in cells):
        notes[-1] += "; of lm-eval's tasks, all that it does"
    if any(column[1] == "peak_memory" for column in shown):
        notes.append("peak memory: on a GPU that of its tensors, on a CPU that of the whole process so far")
    if any(column[1] == "training_tokens" for column in shown):
        notes.append("training tokens: of the run that made the checkpoint; what it was continued from is not counted")
    notes += caveat_notes(cells)
    title = f"{task}, cost: examples/s, wall time and tokens of each cell"
    return Table(title, tuple(heads), tuple(rows), tuple(notes), tuple(records), keys=2)
