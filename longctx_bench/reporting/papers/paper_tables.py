"""A paper's tables: what was published, and beside it what was measured, each under the name of its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from longctx_bench.errors import UserError, near_miss
from longctx_bench.reporting.notes import difference_notes, method_notes
from longctx_bench.reporting.papers.measured import Measured
from longctx_bench.reporting.papers.published import AVERAGE, Number, Paper
from longctx_bench.reporting.summaries import CellSummary
from longctx_bench.reporting.table_parts import EMPTY
from longctx_bench.reporting.tables import Entry, Table

Column = tuple[str, str]
"""Task and length, as the paper writes them."""


def paper_tables(paper: Paper, cells: Sequence[CellSummary], models: Sequence[str] = ()) -> dict[int, list[Table]]:
    """Lay out a paper's tables, one for each base; an empty place means not measured, or not published.

    A model of ours that is one of the paper's bases stands beside that base only. Any other stands beside every
    base, under its own name: whoever reads a column sees whose numbers they are.

    Args:
        paper: what was published.
        cells: what was measured.
        models: the models to show, in this order; all that have a number to show when empty.

    Returns:
        The tables by their number in the paper.

    Raises:
        UserError: one of ``models`` was not measured.
    """
    known = sorted({summary.cell.model for summary in cells})
    for model in models:
        if model not in known:
            raise UserError(f"--base {model}: nothing was measured on it{near_miss(model, known)}")
    shown = list(models) or known
    return {
        table: [_table(paper, table, base, cells, shown) for base in paper.bases_of(table)]
        for table in paper.layout.tables
    }


def _table(paper: Paper, table: int, base: str, cells: Sequence[CellSummary], models: Sequence[str]) -> Table:
    layout = paper.layout
    published = paper.of_table(table, base)
    columns: list[Column] = list(dict.fromkeys((number.task, number.length) for number in published))
    methods = list(dict.fromkeys(number.method for number in published))
    values = {(number.method, number.task, number.length): number.value for number in published}
    beside = {model: Measured(cells, model) for model in models if model == base or model not in layout.bases}
    notes: list[str] = []
    found = {
        model: {
            (method, column): _entry(paper, own, method, column, columns) for method in methods for column in columns
        }
        for model, own in beside.items()
    }
    found = {model: entries for model, entries in found.items() if any(entry.text for entry in entries.values())}
    if not found:
        notes.append("nothing of this table was measured yet")
    header = ["method"]
    for task, length in columns:
        header.append(f"{task} {length}, {layout.bases[base]} (published)")
        header += [f"{task} {length}, {model} (measured)" for model in found]
    rows = []
    for method in methods:
        row: list[str | Entry] = [method]
        for column in columns:
            value = values.get((method, *column))
            row.append(EMPTY if value is None else Entry(value))
            row += [entries[method, column] for entries in found.values()]
        rows.append(tuple(row))
    notes += _notes(paper, cells, found, methods, columns)
    title = f"{layout.name} table {table}, {layout.bases[base]}: {layout.tables[table]}, in %, higher is better"
    records = _records(table, base, published, {model: beside[model] for model in found}, layout.measured_as)
    return Table(title, tuple(header), tuple(rows), tuple(notes), tuple(records))


def _records(
    table: int, base: str, published: Sequence[Number], beside: Mapping[str, Measured], names: Mapping[str, str]
) -> Iterator[dict[str, object]]:
    """Yield a line of the CSV for each number: what was published, then each cell that was measured beside it."""
    for number in published:
        where = {"table": table, "base": base, "method": number.method, "task": number.task, "length": number.length}
        yield where | {"source": "published", "measured_on": None, "value": float(number.value)}
        for model, own in beside.items():
            values = own.values(number.method, names.get(number.task, number.task), number.length)
            if values is not None:
                mean, low, high, n = values
                yield where | {
                    "source": "measured", "measured_on": model, "value": 100 * mean, "low": 100 * low,
                    "high": 100 * high, "n": n,
                }  # fmt: skip


def _entry(paper: Paper, own: Measured, method: str, column: Column, columns: Sequence[Column]) -> Entry:
    task, length = column
    parts = _averaged(paper, column, columns)
    if parts:
        return own.average(method, parts)[0]
    return own.entry(method, paper.layout.measured_as.get(task, task), length)


def _averaged(paper: Paper, column: Column, columns: Sequence[Column]) -> list[Column]:
    """Return what a column averages, under our names; nothing where it is no average."""
    task, length = column
    names = paper.layout.measured_as
    if task in paper.layout.averages:
        return [(names.get(part, part), length) for part in paper.layout.averages[task]]
    if task == AVERAGE:
        return [(names.get(part, part), at) for part, at in columns if part != AVERAGE]
    return []


def _notes(
    paper: Paper, cells: Sequence[CellSummary], found: dict[str, dict[tuple[str, Column], Entry]],
    methods: Sequence[str], columns: Sequence[Column],
) -> list[str]:  # fmt: skip
    """Say how the measured numbers came about, and which averages are not whole."""
    notes = []
    own = {model: Measured(cells, model) for model in found}
    for model, measured in own.items():
        for column in columns:
            parts = _averaged(paper, column, columns)
            counts = [measured.average(method, parts)[1] for method in methods] if parts else []
            if counts and 0 < max(counts) < len(parts):
                notes.append(f"{model}: {column[0]} needs {len(parts)} tasks, {max(counts)} were measured")
    used = [
        cell
        for measured in own.values()
        for method in methods
        for task, length in columns
        if (cell := measured.cell(method, paper.layout.measured_as.get(task, task), length))
    ]
    if used:
        sizes = sorted({cell.n for cell in used})
        span = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        notes.append(f"measured: [95 % interval], n = {span} a number; published: as printed in {paper.layout.title}")
        notes += method_notes(used) + difference_notes(used)
    return notes
