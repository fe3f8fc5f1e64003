"""Score tables: methods x lengths, one per task, and methods x document-length buckets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from longctx_bench.core.types import length_name
from longctx_bench.metrics.length_buckets import Bucket, buckets_of, scores_by_bucket
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.stats.confidence_intervals import mean_interval
from longctx_bench.reporting.stats.paired_tests import PairedResult, min_detectable_difference
from longctx_bench.reporting.tables.base import Entry, Table
from longctx_bench.reporting.tables.footnotes import (
    caveat_notes,
    difference_notes,
    mark_notes,
    method_notes,
    scores_note,
    size_note,
)
from longctx_bench.reporting.tables.formatting import (
    EMPTY,
    caveats_of,
    cell_columns,
    contexts_of,
    interval_entry,
    length_heading,
    length_label,
    metric_description,
    n_per_cell,
    row_of,
    rows_of,
    score_entry,
    unit_of,
)
from longctx_bench.reporting.tables.significance import RowKey, RowSignificance, column_entry, compare_rows
from longctx_bench.reporting.tables.summary import retention


def length_tables(cells: Sequence[CellSummary], price: bool = False) -> list[Table]:
    """Return the tables of each task: by length, then by document length. Empty entries were not measured.

    Args:
        cells: of any models and tasks.
        price: add a column with what a method costs within the training context, where it and its untouched base were
            measured there.
    """
    by_task: dict[str, list[CellSummary]] = {}
    for summary in cells:
        by_task.setdefault(summary.cell.task, []).append(summary)
    tables = []
    for task, task_cells in sorted(by_task.items()):
        table = _by_length(task, task_cells)
        tables.append(_with_price(table, task_cells) if price else table)
        tables += _by_document_length(task, task_cells)
    return tables


def cell_record(summary: CellSummary, significance: RowSignificance) -> dict[str, object]:
    """Return a cell as a CSV record: scores in [0, 1], losses in nats; whole documents have length and scale 0."""
    result, spec = summary.result, summary.result.spec
    return {
        **cell_columns(summary),
        "scale": summary.scale,
        "factor": result.factor,
        "factor_source": result.factor_source,
        "metric": summary.metric,
        "score": summary.score,
        "low": summary.low,
        "high": summary.high,
        "n": summary.n,
        "spec_hash": result.spec_hash,
        "detectable_difference": min_detectable_difference(summary.contributions, summary.percent),
        "mark": significance.mark.value,
        "p_against_best": significance.p,
        "protocol": spec.task.protocol,
        "seed": spec.seed,
        "dtype": spec.dtype,
        "engine": spec.engine,
        "parity": None if summary.parity is None else str(summary.parity),
        "caveats": caveats_of([summary]),
    }


def _by_length(task: str, cells: Sequence[CellSummary]) -> Table:
    columns: dict[int, dict[RowKey, CellSummary]] = {length: {} for length in sorted({s.cell.length for s in cells})}
    for summary in cells:
        columns[summary.cell.length][row_of(summary)] = summary
    names, contexts = rows_of(cells), contexts_of(cells)
    significance = {
        length: compare_rows(column_entry(column[row]) for row in names if row in column)
        for length, column in columns.items()
    }

    def entry(row: RowKey, length: int) -> Entry:
        summary = columns[length].get(row)
        return score_entry(summary, significance[length].by_row[row].mark) if summary else EMPTY

    notes = [
        size_note(cells),
        *method_notes(cells),
        *mark_notes(significance.values(), names),
        *difference_notes(cells),
    ]
    return Table(
        title=f"{task}: {metric_description(cells[0])}, {n_per_cell(cells)}",
        header=("model", *(length_heading(length, contexts) for length in columns)),
        rows=tuple((name, *(entry(row, length) for length in columns)) for row, name in names.items()),
        notes=tuple(notes),
        records=tuple(cell_record(s, significance[s.cell.length].by_row[row_of(s)]) for s in cells),
    )


def _with_price(table: Table, cells: Sequence[CellSummary]) -> Table:
    """Add a column with the difference of each row to the untouched base at 1x, unless no row has one."""
    by_row: dict[RowKey, dict[int, CellSummary]] = {}
    for summary in cells:
        by_row.setdefault(row_of(summary), {})[summary.cell.length] = summary
    prices = {row: retention(by_row[row], by_row.get((row[0], "rope"), {})) for row in rows_of(cells)}
    if not any(prices.values()):
        return table
    percent = cells[0].percent
    unit = "points" if percent else unit_of(cells[0])
    entries = [
        EMPTY if price is None else interval_entry(price.difference, price.low, price.high, percent, signed=True)
        for price in prices.values()
    ]
    note = (
        "1x - base: the score at the training context minus rope's, the untouched base's, on the same prompts "
        "[95 % interval]: what a method costs where the base needs none"
    )
    records = [
        {**record, **(_price_columns(prices[row_of(summary)]) if summary.scale == 1 else {})}
        for record, summary in zip(table.records, cells, strict=True)
    ]
    return replace(
        table,
        header=(*table.header, "1x - base" + (f" ({unit})" if unit else "")),
        rows=tuple((*row, entry) for row, entry in zip(table.rows, entries, strict=True)),
        notes=(*table.notes, note),
        records=tuple(records),
    )


def _price_columns(price: PairedResult | None) -> dict[str, object]:
    return {} if price is None else {"price": price.difference, "price_low": price.low, "price_high": price.high}


def _by_document_length(task: str, cells: Sequence[CellSummary]) -> list[Table]:
    """Return one table per length with document-length buckets."""
    tables = []
    names = rows_of(cells)
    for length in sorted({summary.cell.length for summary in cells if summary.points}):
        buckets = buckets_of(task, length)
        by_row = {row_of(summary): summary for summary in cells if summary.cell.length == length}
        rows: list[tuple[str | Entry, ...]] = []
        records = []
        score_sets: list[list[float]] = []
        for row in (row for row in names if row in by_row):
            summary = by_row[row]
            scores = scores_by_bucket(summary.points, buckets, summary.original_length)
            rows.append((names[row], *(_mean_entry(scores[bucket.name], summary.percent) for bucket in buckets)))
            score_sets += filter(None, scores.values())
            records.append(_bucket_record(summary, buckets, scores))
        at = length_name(length) if not length else f"{length_label(length)} tokens"
        title = f"{task} at {at}, by the documents' length: {metric_description(cells[0])}, (n)"
        notes = [scores_note(score_sets, cells[0])] if score_sets else []
        notes += caveat_notes(list(by_row.values()))
        header = ("model", *(bucket.name for bucket in buckets))
        tables.append(Table(title, header, tuple(rows), tuple(notes), tuple(records)))
    return tables


def _mean_entry(scores: Sequence[float], percent: bool) -> Entry:
    if not scores:
        return EMPTY
    entry = interval_entry(sum(scores) / len(scores), *mean_interval(scores, percent), percent)
    return Entry(entry.text, f"{entry.detail} ({len(scores)})")


def _bucket_record(
    summary: CellSummary, buckets: Sequence[Bucket], scores: Mapping[str, Sequence[float]]
) -> dict[str, object]:
    record = cell_columns(summary)
    for bucket in buckets:
        bucket_scores = scores[bucket.name]
        record[f"score {bucket.name}"] = sum(bucket_scores) / len(bucket_scores) if bucket_scores else None
        record[f"n {bucket.name}"] = len(bucket_scores)
    return record
