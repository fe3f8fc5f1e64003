"""Summary tables: effective length, retention at the training context, position bias."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from longctx_bench.core.types import NATURAL
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.stats.effective_length import (
    RELATIVE_THRESHOLD,
    RULER_THRESHOLD,
    EffectiveLength,
    effective_length,
)
from longctx_bench.reporting.stats.paired_tests import PairedResult, paired_comparison
from longctx_bench.reporting.stats.position_bias import fit_position_bias
from longctx_bench.reporting.tables.base import Entry, Table
from longctx_bench.reporting.tables.footnotes import caveat_notes, size_note
from longctx_bench.reporting.tables.formatting import (
    EMPTY,
    caveats_of,
    cell_columns,
    contexts_of,
    interval_entry,
    length_heading,
    n_per_cell,
    num_decimals,
    row_of,
    rows_of,
    tasks_of,
    unit_of,
)
from longctx_bench.reporting.tables.significance import RowKey, column_entry

ByLength = Mapping[int, CellSummary]
"""Cells of one method and task by length, shortest first."""
_OWN, _RULER, _RETENTION, _DIFFERENCE = "own", "ruler", "retention", "difference"


def summary_tables(cells: Sequence[CellSummary]) -> list[Table]:
    """Return the tables of each task: effective length and retention, and position bias for tasks with a depth grid.

    Whole documents are left out, as they have no fixed length, and so are empty columns.
    """
    tables = []
    for task in tasks_of(cells):
        task_cells = [summary for summary in cells if summary.cell.task == task and summary.cell.length != NATURAL]
        if task_cells:
            tables += [*_summary(task, task_cells), *_position_bias(task, task_cells)]
    return tables


def at_training_context(by_length: ByLength) -> CellSummary | None:
    """Return a method's cell at 1x; None where it was not measured."""
    return next((summary for summary in by_length.values() if summary.scale == 1), None)


def retention(by_length: ByLength, base: ByLength) -> PairedResult | None:
    """Compare a method with the unmodified base at 1x; None where their examples differ."""
    cell, base_cell = at_training_context(by_length), at_training_context(base)
    if cell is None or base_cell is None or cell is base_cell or cell.metric != base_cell.metric:
        return None
    if column_entry(cell).examples != column_entry(base_cell).examples:
        return None
    if not (np.isfinite(cell.contributions).all() and np.isfinite(base_cell.contributions).all()):
        return None
    return paired_comparison(cell.contributions, base_cell.contributions, cell.percent)


def _summary(task: str, cells: Sequence[CellSummary]) -> list[Table]:
    by_row: dict[RowKey, dict[int, CellSummary]] = {}
    for summary in sorted(cells, key=lambda s: s.cell.length):
        by_row.setdefault(row_of(summary), {})[summary.cell.length] = summary
    names = rows_of(cells)
    entries: dict[RowKey, dict[str, Entry]] = {}
    records = []
    for row in names:
        record: dict[str, object] = {"model": names[row], "base": row[0], "method": row[1], "task": task}
        entries[row] = _effective_length_entries(by_row[row], record)
        entries[row] |= _retention_entries(
            retention(by_row[row], by_row.get((row[0], "rope"), {})), cells[0].percent, record
        )
        records.append(record | {"caveats": caveats_of(by_row[row].values())})
    unit = "points" if cells[0].percent else unit_of(cells[0])
    heads = {
        _OWN: f"effective length ({100 * RELATIVE_THRESHOLD:g} % of own 1x)",
        _RULER: f"effective length ({100 * RULER_THRESHOLD:g} %)",
        _RETENTION: "retention (%)",
        _DIFFERENCE: "difference at 1x" + (f" ({unit})" if unit else ""),
    }
    columns = [key for key in heads if any(key in row_entries for row_entries in entries.values())]
    if not columns:
        return []
    rows: list[tuple[str | Entry, ...]] = [
        (name, *(entries[row].get(key, EMPTY) for key in columns)) for row, name in names.items()
    ]
    topics = ["effective length"] if {_OWN, _RULER} & set(columns) else []
    topics += ["retention at the training context"] if {_RETENTION, _DIFFERENCE} & set(columns) else []
    title = f"{task}, summary: {' and '.join(topics)}, {n_per_cell(cells)}"
    header = ("model", *(heads[key] for key in columns))
    notes = (size_note(cells), *_column_notes(columns), *caveat_notes(cells))
    return [Table(title, header, tuple(rows), notes, tuple(records))]


def _column_notes(columns: Sequence[str]) -> list[str]:
    notes = []
    if _OWN in columns or _RULER in columns:
        relative = f"{100 * RELATIVE_THRESHOLD:g} % of the method's own at the training context (1x)"
        absolute = f"{100 * RULER_THRESHOLD:g} %, RULER's threshold"
        thresholds = " or ".join(text for key, text in ((_OWN, relative), (_RULER, absolute)) if key in columns)
        notes.append(
            f"effective length: the longest measured length in tokens up to which the score is at least {thresholds} "
            "[95 % interval]"
        )
    if _RETENTION in columns:
        notes.append("retention: the score at 1x in % of rope's, the untouched base's, on the same prompts")
    if _DIFFERENCE in columns:
        notes.append("difference at 1x: to rope's score on the same prompts [95 % interval]")
    return notes


def _effective_length_entries(by_length: ByLength, record: dict[str, object]) -> dict[str, Entry]:
    """Return the effective lengths, for scores in per cent only, and add them to the CSV record."""
    cells = list(by_length.values())
    if not all(summary.percent and summary.higher_is_better for summary in cells):
        return {}
    scores = {length: summary.scores for length, summary in by_length.items()}
    lengths = {_RULER: effective_length(scores, RULER_THRESHOLD)}
    at_1x = at_training_context(by_length)
    if at_1x and at_1x.score > 0:
        lengths[_OWN] = effective_length(scores, RELATIVE_THRESHOLD, relative_to=at_1x.cell.length)
    for key, column in ((_OWN, "effective_length_of_own"), (_RULER, "effective_length_ruler")):
        effective = lengths.get(key)
        record[column] = effective and (effective.length or cells[0].cell.length)
        record[f"{column}_bound"] = effective and _bound(effective, cells[-1].cell.length)
        record |= {f"{column}_low": effective and effective.low, f"{column}_high": effective and effective.high}
    return {key: _length(effective, cells[0].cell.length, cells[-1].cell.length) for key, effective in lengths.items()}


def _bound(effective: EffectiveLength, longest: int) -> str:
    """Return whether the length in the CSV is exact, or an end of the measured range."""
    return "below" if effective.length is None else "at least" if effective.length == longest else "exact"


def _length(effective: EffectiveLength, shortest: int, longest: int) -> Entry:
    """Format a length with its interval; ``<`` and ``≥`` mark the ends of the measured range."""
    low, high = (f"< {shortest:,}" if length is None else f"{length:,}" for length in (effective.low, effective.high))
    text = f"< {shortest:,}" if effective.length is None else f"{effective.length:,}"
    return Entry(f"≥ {text}" if effective.length == longest else text, f"[{low}, {high}]")


def _retention_entries(comparison: PairedResult | None, percent: bool, record: dict[str, object]) -> dict[str, Entry]:
    """Return retention and difference at 1x, and add them to the CSV record."""
    retained = comparison.mean_a / comparison.mean_b if comparison and percent and comparison.mean_b > 0 else None
    record |= {"retention": retained, "difference_at_1x": comparison and comparison.difference}
    record |= {"difference_low": comparison and comparison.low, "difference_high": comparison and comparison.high}
    if comparison is None:
        return {}
    entries = {
        _DIFFERENCE: interval_entry(comparison.difference, comparison.low, comparison.high, percent, signed=True)
    }
    if retained is not None:
        entries[_RETENTION] = Entry(f"{100 * retained:.{num_decimals(comparison.high - comparison.low, percent)}f}")
    return entries


def _position_bias(task: str, cells: Sequence[CellSummary]) -> list[Table]:
    """Return the table methods x lengths of the score's slope over needle depth."""
    cells = [summary for summary in cells if len(summary.by_depth) > 1 and len(summary.depths) > 2]
    if not cells:
        return []
    slopes = {(row_of(summary), summary.cell.length): _slope(summary) for summary in cells}
    lengths = sorted({summary.cell.length for summary in cells})
    rows: list[tuple[str | Entry, ...]] = [
        (name, *(slopes[row, length][0] if (row, length) in slopes else EMPTY for length in lengths))
        for row, name in rows_of(cells).items()
    ]
    notes = (
        size_note(cells),
        "slope: of a line through the scores by depth, from the beginning (0 %) to the end (100 %) of the context; "
        "above 0, needles near the end are found more often",
        "worst: the lowest score and its depth, the shallowest of several; none where all depths have one score",
        *caveat_notes(cells),
    )
    return [
        Table(
            title=f"{task}, position bias: slope in points [95 % interval], worst % at depth, {n_per_cell(cells)}",
            header=("model", *(length_heading(length, contexts_of(cells)) for length in lengths)),
            rows=tuple(rows),
            notes=notes,
            records=tuple(record for _, record in slopes.values()),
        )
    ]


def _slope(summary: CellSummary) -> tuple[Entry, dict[str, object]]:
    bias = fit_position_bias(summary.depths, summary.scores)
    record = cell_columns(summary) | {"slope": bias.slope, "slope_low": bias.low, "slope_high": bias.high}
    record |= {"worst_depth": bias.worst_depth, "worst_score": bias.worst_score, "caveats": caveats_of([summary])}
    if len(set(summary.by_depth.values())) == 1:
        return Entry("0"), record
    entry = interval_entry(bias.slope / 100, bias.low / 100, bias.high / 100, percent=True, signed=True)
    return Entry(entry.text, f"{entry.detail}, {100 * bias.worst_score:.0f} at {bias.worst_depth:g} %"), record
