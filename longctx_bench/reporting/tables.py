"""Tables of contestants x lengths, one for each task, in the formats that people paste."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from longctx_bench.records import NATURAL, length_name
from longctx_bench.reporting.buckets import buckets_of, sorted_into
from longctx_bench.reporting.intervals import mean_interval
from longctx_bench.reporting.summaries import CellSummary


@dataclass(frozen=True)
class Table:
    """One task's scores: rows of text, the first column names the contestant."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    """What a reader must know to compare the rows."""


def tables(cells: Sequence[CellSummary]) -> list[Table]:
    """Make one table for each task; an empty place means not measured."""
    made = []
    for task in dict.fromkeys(summary.cell.task for summary in cells):
        of_task = [summary for summary in cells if summary.cell.task == task]
        lengths = sorted({summary.cell.length for summary in of_task})
        found = {(summary.contestant, summary.cell.length): summary for summary in of_task}
        names = sorted({summary.contestant for summary in of_task}, key=lambda name: _order(name, of_task))
        contexts = {summary.original_length for summary in of_task}
        rows = tuple((name, *(_score(found.get((name, length))) for length in lengths)) for name in names)
        sizes = sorted({summary.n for summary in of_task})
        n = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"
        title = f"{task}: {_measure(of_task[0])}, n = {n} a cell"
        header = ("model", *(_heading(length, contexts) for length in lengths))
        made.append(Table(title, header, rows, _notes(of_task)))
        made += _by_length(task, of_task, names)
    return made


def _measure(summary: CellSummary) -> str:
    unit = "in %" if summary.percent else "in nats a token" if summary.metric == "token_loss" else ""
    direction = "higher" if summary.higher_is_better else "lower"
    return f"{summary.metric} {unit}".strip() + f" [95 % interval], {direction} is better"


def _by_length(task: str, cells: Sequence[CellSummary], names: Sequence[str]) -> list[Table]:
    """Make a table of contestants x document lengths for each cell length whose examples are sorted so."""
    made = []
    for length in sorted({summary.cell.length for summary in cells if summary.points}):
        buckets = buckets_of(task, length)
        rows = []
        for summary in sorted((s for s in cells if s.cell.length == length), key=lambda s: names.index(s.contestant)):
            scores = sorted_into(summary.points, buckets, summary.original_length)
            rows.append((summary.contestant, *(_mean(scores[bucket.name]) for bucket in buckets)))
        title = f"{task} at {length_name(length)}, by the documents' length: {_measure(cells[0])}, (n)"
        made.append(Table(title, ("model", *(bucket.name for bucket in buckets)), tuple(rows)))
    return made


def _mean(scores: Sequence[float]) -> str:
    if not scores:
        return ""
    low, high = mean_interval(scores)
    return f"{100 * sum(scores) / len(scores):.0f} [{100 * low:.0f}, {100 * high:.0f}] ({len(scores)})"


def _notes(cells: Sequence[CellSummary]) -> tuple[str, ...]:
    """Say which factors are fixed, and what differs between cells besides model, method and length."""
    fixed = {f"{s.contestant}: factor fixed at {s.details['factor']:g}" for s in cells if _is_fixed(s)}
    derived = "factors derived from the length: s = max(1, length / training context)"
    if any(summary.cell.length == NATURAL for summary in cells):
        derived += ", the length being each prompt's own where documents are whole"
    notes = sorted(fixed) or [derived]
    notes += _tunings(cells)
    for key in ("seed", "dtype", "engine", "chat_template"):
        values = sorted({str(summary.details["spec"][key]) for summary in cells})
        if len(values) > 1:
            notes.append(f"not the same for all cells: {key} ({', '.join(values)})")
    return tuple(notes)


def _tunings(cells: Sequence[CellSummary]) -> list[str]:
    """Say, by contestant, what a tuned scalar was at each length and where it came from."""
    found: dict[str, dict[int, str]] = {}
    for summary in cells:
        tuning = summary.details.get("tuning")  # older cells do not say
        if tuning:
            what = f"{summary.contestant}: {tuning['scalar'].replace('_', ' ')} by {tuning['source']}"
            at = length_name(summary.cell.length) + (" (longest prompt)" if summary.cell.length == NATURAL else "")
            found.setdefault(what, {})[summary.cell.length] = f"{tuning['value']:.4g} at {at}"
    return [
        f"{what}: " + ", ".join(value for _, value in sorted(values.items())) for what, values in sorted(found.items())
    ]


def _is_fixed(summary: CellSummary) -> bool:
    return bool(summary.details["factor_source"] == "fixed")


def _order(name: str, cells: Sequence[CellSummary]) -> tuple[str, bool, str]:
    """Sort by base; the untouched model first, the others by name."""
    cell = next(summary.cell for summary in cells if summary.contestant == name)
    return cell.model, cell.method != "rope", cell.method


def _heading(length: int, contexts: set[int]) -> str:
    """Return a length with its scale, where all models share one training context."""
    if length == NATURAL:
        return "natural"
    if len(contexts) != 1:
        return f"{length:,}"
    return f"{length:,} ({length / next(iter(contexts)):g}x)"


def _score(summary: CellSummary | None) -> str:
    if summary is None:
        return ""
    if not summary.percent:
        return f"{summary.score:.3f} [{summary.low:.3f}, {summary.high:.3f}]"
    # A hundred examples cannot tell tenths of a percent apart: digits follow the interval's width.
    digits = 1 if summary.high - summary.low < 0.1 else 0
    low, mean, high = (f"{100 * value:.{digits}f}" for value in (summary.low, summary.score, summary.high))
    return f"{mean} [{low}, {high}]"


def print_tables(cells: Sequence[CellSummary], console: Console | None = None) -> None:
    """Print the tables to the terminal."""
    console = console or Console()
    for table in tables(cells):
        shown = RichTable(title=escape(table.title), title_justify="left")
        for place, heading in enumerate(table.header):
            shown.add_column(escape(heading), justify="left" if place == 0 else "right", no_wrap=place == 0)
        for row in table.rows:
            shown.add_row(*map(escape, row))
        console.print(shown)
        for note in table.notes:
            console.print(note, style="dim", markup=False, soft_wrap=True)


def markdown(cells: Sequence[CellSummary]) -> str:
    """Return GitHub-flavoured Markdown."""
    blocks = []
    for table in tables(cells):
        lines = [f"**{table.title}**", "", _pipes(table.header), _pipes(["---", *["---:"] * (len(table.header) - 1)])]
        blocks.append("\n".join([*lines, *map(_pipes, table.rows), "", *(f"*{note}*" for note in table.notes)]))
    return "\n\n".join(blocks) + "\n"


def latex(cells: Sequence[CellSummary]) -> str:
    r"""Return booktabs tables, ready for ``\\input``."""
    blocks = []
    for table in tables(cells):
        columns = "l" + "r" * (len(table.header) - 1)
        body = "\n".join(" & ".join(map(_tex, row)) + r" \\" for row in table.rows)
        heading = " & ".join(map(_tex, table.header))
        notes = "".join(f"% {note}\n" for note in table.notes)
        blocks.append(
            f"% {table.title}\n{notes}\\begin{{tabular}}{{{columns}}}\n\\toprule\n{heading} \\\\\n\\midrule\n{body}\n"
            f"\\bottomrule\n\\end{{tabular}}"
        )
    return "\n\n".join(blocks) + "\n"


def csv_text(cells: Sequence[CellSummary]) -> str:
    """Return one line a cell, unrounded: scores in [0, 1], losses in nats; whole documents have length and scale 0."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["model", "method", "task", "length", "scale", "factor", "factor_source", "metric", "score", "low", "high", "n",
         "spec_hash"]
    )  # fmt: skip
    for summary in cells:
        cell, details = summary.cell, summary.details
        row: list[object] = [cell.model, cell.method, cell.task, cell.length, summary.scale]
        row += [details["factor"], details["factor_source"], summary.metric, summary.score, summary.low, summary.high]
        writer.writerow([*row, summary.n, details["spec_hash"]])
    return buffer.getvalue()


def html_text(cells: Sequence[CellSummary]) -> str:
    """Return a plain page of the tables that needs nothing else."""
    blocks = []
    for table in tables(cells):
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
        )
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in table.notes)
        blocks.append(
            f"<h2>{html.escape(table.title)}</h2><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{notes}"
        )
    style = (
        "body{font:15px sans-serif;margin:2em}td,th{padding:.3em .8em;border-bottom:1px solid #ccc;text-align:right}"
    )
    style += "td:first-child,th:first-child{text-align:left}table{border-collapse:collapse}h2{font-size:1em}"
    body = "".join(blocks)
    return f'<!doctype html><meta charset="utf-8"><title>longctx-bench</title><style>{style}</style>{body}\n'


FORMATS: dict[str, Callable[[Sequence[CellSummary]], str]] = {
    "md": markdown,
    "latex": latex,
    "csv": csv_text,
    "html": html_text,
}


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _tex(text: str) -> str:
    for special in "&%$#_{}":
        text = text.replace(special, f"\\{special}")
    return text
