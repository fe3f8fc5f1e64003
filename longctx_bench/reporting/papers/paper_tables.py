"""A paper's tables: published and measured numbers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from longctx_bench.core.types import Cell
from longctx_bench.reporting.papers.paper_spec import AVERAGE, Paper, PublishedNumber
from longctx_bench.reporting.papers.result_lookup import ResultLookup, require_models
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.tables.base import Entry, Table
from longctx_bench.reporting.tables.footnotes import difference_notes, method_notes
from longctx_bench.reporting.tables.formatting import EMPTY

ColumnKey = tuple[str, str]
"""Task and length, as in the paper."""


def paper_tables(paper: Paper, cells: Sequence[CellSummary], models: Sequence[str] = ()) -> dict[int, list[Table]]:
    """Return a paper's tables, one per base. Empty entries were not measured or not published.

    A measured model that is one of the paper's bases is shown next to that base only, any other next to every base;
    each column names its model.

    Args:
        paper: the published numbers.
        cells: measured cells.
        models: base models to show, in this order; all with a number to show when empty.

    Returns:
        Tables by their number in the paper.

    Raises:
        UserError: one of ``models`` was not measured.
    """
    require_models(cells, models)
    models = list(models) or sorted({summary.cell.model for summary in cells})
    return {
        table: [_table(paper, table, base, cells, models) for base in paper.bases_of(table)]
        for table in paper.spec.tables
    }


def _table(paper: Paper, table: int, base: str, cells: Sequence[CellSummary], models: Sequence[str]) -> Table:
    spec = paper.spec
    published = paper.of_table(table, base)
    columns: list[ColumnKey] = list(dict.fromkeys((number.task, number.length) for number in published))
    methods = list(dict.fromkeys(number.method for number in published))
    values = {(number.method, number.task, number.length): number.value for number in published}
    perplexity = table in spec.perplexity
    lookups = {
        model: ResultLookup(cells, model, perplexity) for model in models if model == base or model not in spec.bases
    }
    notes: list[str] = list(spec.notes.get(table, ()))
    entries_by_model = {
        model: {
            (method, column): _entry(paper, lookup, method, column, columns) for method in methods for column in columns
        }
        for model, lookup in lookups.items()
    }
    entries_by_model = {
        model: entries for model, entries in entries_by_model.items() if any(entry.text for entry in entries.values())
    }
    shown_lookups = {model: lookups[model] for model in entries_by_model}
    if not entries_by_model:
        notes.append("nothing of this table was measured yet")
    header = ["method"]
    for task, length in columns:
        header.append(f"{task} {length}, {spec.bases[base]} (published)")
        header += [f"{task} {length}, {model} (measured)" for model in entries_by_model]
    rows = []
    for method in methods:
        row: list[str | Entry] = [method]
        for column in columns:
            value = values.get((method, *column))
            row.append(EMPTY if value is None else Entry(value))
            row += [entries[method, column] for entries in entries_by_model.values()]
        rows.append(tuple(row))
    notes += _notes(paper, shown_lookups, methods, columns)
    title = f"{spec.name} table {table}, {spec.bases[base]}: {spec.tables[table]}, "
    title += "perplexity, lower is better" if perplexity else "in %, higher is better"
    records = _records(paper, table, base, published, shown_lookups)
    return Table(title, tuple(header), tuple(rows), tuple(notes), tuple(records))


def _records(
    paper: Paper, table: int, base: str, published: Sequence[PublishedNumber], lookups: Mapping[str, ResultLookup]
) -> Iterator[dict[str, object]]:
    """Yield the CSV records of each number: published, then measured."""
    columns = list(dict.fromkeys((number.task, number.length) for number in published))
    for number in published:
        where = {"table": table, "base": base, "method": number.method, "task": number.task, "length": number.length}
        yield where | {"source": "published", "measured_on": None, "value": float(number.value)}
        for model, lookup in lookups.items():
            averaged = _averaged(paper, (number.task, number.length), columns)
            measured = where | {"source": "measured", "measured_on": model}
            if averaged:
                average = lookup.average(number.method, averaged)
                if average is not None:
                    yield measured | {"value": lookup.unit * average}
                continue
            values = lookup.values(number.method, _our_task(paper, number.task), number.length)
            if values is not None:
                mean, low, high = (lookup.unit * value for value in values[:3])
                yield measured | {"value": mean, "low": low, "high": high, "n": values[3]}


def _entry(paper: Paper, lookup: ResultLookup, method: str, column: ColumnKey, columns: Sequence[ColumnKey]) -> Entry:
    task, length = column
    averaged = _averaged(paper, column, columns)
    if averaged:
        average = lookup.average(method, averaged)
        return EMPTY if average is None else Entry(f"{lookup.unit * average:.{lookup.digits}f}")
    return lookup.entry(method, _our_task(paper, task), length)


def _our_task(paper: Paper, task: str) -> str:
    return paper.spec.measured_as.get(task, task)


def _averaged(paper: Paper, column: ColumnKey, columns: Sequence[ColumnKey]) -> list[ColumnKey]:
    """Return the (task, length) pairs that a column averages, under our names; empty for other columns."""
    task, length = column
    named = length in paper.spec.lengths
    if task in paper.spec.averages or named:
        parts, lengths = paper.spec.averages.get(task, (task,)), paper.spec.lengths.get(length, (length,))
        return [(_our_task(paper, part), at) for part in parts for at in lengths]
    if task == AVERAGE:
        return [(_our_task(paper, part), at) for part, at in columns if part != AVERAGE]
    return []


def _notes(
    paper: Paper, lookups: Mapping[str, ResultLookup], methods: Sequence[str], columns: Sequence[ColumnKey]
) -> list[str]:
    """Return notes on the measured numbers, and on incomplete averages."""
    notes = []
    used: dict[Cell, CellSummary] = {}
    for model, measured in lookups.items():
        for column in columns:
            average = _averaged(paper, column, columns)
            cells_by_method = [
                measured.measured_cells(method, average or [(_our_task(paper, column[0]), column[1])])
                for method in methods
            ]
            used |= {summary.cell: summary for method_cells in cells_by_method for summary in method_cells}
            num_measured = max(map(len, cells_by_method))
            if average and 0 < num_measured < len(average):
                kind = "cells" if column[1] in paper.spec.lengths else "tasks"
                notes.append(f"{model}: {column[0]} needs {len(average)} {kind}, {num_measured} were measured")
    if used:
        shown = list(used.values())
        counts = sorted({summary.n for summary in shown})
        span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
        notes.append(f"measured: [95 % interval], n = {span} a cell; published: as printed in {paper.spec.title}")
        notes += method_notes(shown) + difference_notes(shown)
    return notes
