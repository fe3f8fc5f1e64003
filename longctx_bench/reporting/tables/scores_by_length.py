"""Tables of methods x lengths, one for each task, and of methods x document lengths where examples are sorted so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longctx_bench.core.types import length_name
from longctx_bench.metrics.length_buckets import Bucket, buckets_of, scores_by_bucket
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.stats.confidence_intervals import mean_interval
from longctx_bench.reporting.stats.paired_tests import detectable_difference
from longctx_bench.reporting.tables.base import Entry, Table
from longctx_bench.reporting.tables.footnotes import difference_notes, mark_notes, method_notes, scores_note, size_note
from longctx_bench.reporting.tables.formatting import (
    EMPTY,
    cell_columns,
    contexts_of,
    heading,
    measure,
    number,
    row_of,
    rows_of,
    score_entry,
    sizes,
    tokens_name,
)
from longctx_bench.reporting.tables.significance import Row, Verdict, competitor, verdicts


def length_tables(cells: Sequence[CellSummary]) -> list[Table]:
    """Make each task's tables: by length, then by document length; an empty place means not measured."""
    by_task: dict[str, list[CellSummary]] = {}
    for summary in cells:
        by_task.setdefault(summary.cell.task, []).append(summary)
    made = []
    for task, own in sorted(by_task.items()):
        made.append(_by_length(task, own))
        made += _by_document_length(task, own)
    return made


def cell_record(summary: CellSummary, verdict: Verdict) -> dict[str, object]:
    """Return a cell as a line of the CSV: scores in [0, 1], losses in nats; whole documents have length and scale 0."""
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
        "detectable_difference": detectable_difference(summary.values, summary.percent),
        "mark": verdict.mark.value,
        "p_against_best": verdict.p,
        "protocol": spec.task.protocol,
        "seed": spec.seed,
        "dtype": spec.dtype,
        "engine": spec.engine,
        "parity": None if summary.parity is None else str(summary.parity),
    }


def _by_length(task: str, cells: Sequence[CellSummary]) -> Table:
    columns: dict[int, dict[Row, CellSummary]] = {length: {} for length in sorted({s.cell.length for s in cells})}
    for summary in cells:
        columns[summary.cell.length][row_of(summary)] = summary
    names, contexts = rows_of(cells), contexts_of(cells)
    found = {length: verdicts(competitor(own[row]) for row in names if row in own) for length, own in columns.items()}

    def entry(row: Row, length: int) -> Entry:
        summary = columns[length].get(row)
        return score_entry(summary, found[length].by_row[row].mark) if summary else EMPTY

    notes = [size_note(cells), *method_notes(cells), *mark_notes(found.values(), names), *difference_notes(cells)]
    return Table(
        title=f"{task}: {measure(cells[0])}, {sizes(cells)}",
        header=("model", *(heading(length, contexts) for length in columns)),
        rows=tuple((name, *(entry(row, length) for length in columns)) for row, name in names.items()),
        notes=tuple(notes),
        records=tuple(cell_record(s, found[s.cell.length].by_row[row_of(s)]) for s in cells),
    )


def _by_document_length(task: str, cells: Sequence[CellSummary]) -> list[Table]:
    """Make a table for each cell length whose examples are sorted by the length of their documents."""
    made = []
    names = rows_of(cells)
    for length in sorted({summary.cell.length for summary in cells if summary.points}):
        buckets = buckets_of(task, length)
        own = {row_of(summary): summary for summary in cells if summary.cell.length == length}
        rows: list[tuple[str | Entry, ...]] = []
        records = []
        sets: list[list[float]] = []
        for row in (row for row in names if row in own):
            scores = scores_by_bucket(own[row].points, buckets, own[row].original_length)
            rows.append((names[row], *(_mean(scores[bucket.name], own[row].percent) for bucket in buckets)))
            sets += filter(None, scores.values())
            records.append(_bucket_record(own[row], buckets, scores))
        at = length_name(length) if not length else f"{tokens_name(length)} tokens"
        title = f"{task} at {at}, by the documents' length: {measure(cells[0])}, (n)"
        notes = (scores_note(sets, cells[0]),) if sets else ()
        made.append(Table(title, ("model", *(bucket.name for bucket in buckets)), tuple(rows), notes, tuple(records)))
    return made


def _mean(scores: Sequence[float], percent: bool) -> Entry:
    if not scores:
        return EMPTY
    entry = number(sum(scores) / len(scores), *mean_interval(scores, percent), percent)
    return Entry(entry.text, f"{entry.detail} ({len(scores)})")


def _bucket_record(
    summary: CellSummary, buckets: Sequence[Bucket], scores: Mapping[str, Sequence[float]]
) -> dict[str, object]:
    record = cell_columns(summary)
    for bucket in buckets:
        own = scores[bucket.name]
        record[f"score {bucket.name}"] = sum(own) / len(own) if own else None
        record[f"n {bucket.name}"] = len(own)
    return record
