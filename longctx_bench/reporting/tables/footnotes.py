"""Footnotes of tables: extension factors, what was tuned, detectable difference, differences between cells."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from longctx_bench.core.sanitize import describe_parameters
from longctx_bench.core.types import NATURAL, Cell
from longctx_bench.reporting.results import CAVEATS, CellSummary
from longctx_bench.reporting.stats.confidence_intervals import is_rate
from longctx_bench.reporting.stats.paired_tests import (
    MIN_DIFFERING_PAIRS,
    SIGNIFICANCE_LEVEL,
    min_detectable_difference,
)
from longctx_bench.reporting.tables.formatting import (
    length_label,
    list_names,
    num_decimals,
    row_of,
    rows_of,
    tasks_of,
    unit_of,
)
from longctx_bench.reporting.tables.significance import ColumnSignificance, RowKey

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RUN_SETTINGS = ("seed", "dtype", "engine", "chat_template")
"""Fields of a cell's spec that should be the same for all cells of a table."""


def method_notes(cells: Sequence[CellSummary]) -> list[str]:
    """Return notes on extension factors, tuned scalars and parameters, and virtual length."""
    fixed = sorted({f"{s.variant}: factor fixed at {s.result.factor:g}" for s in cells if _is_fixed(s)})
    notes = []
    if not all(map(_is_fixed, cells)):
        derived = "factors derived from the length: s = max(1, length / training context)"
        if any(summary.cell.length == NATURAL for summary in cells):
            derived += ", the length being each prompt's own where documents are whole"
        notes.append(derived)
    return notes + fixed + _tunings(cells) + _tuned_parameters(cells) + _virtual_lengths(cells)


def size_note(cells: Sequence[CellSummary]) -> str:
    """Return the note on the smallest detectable difference between two rows."""
    return scores_note([summary.contributions for summary in cells], cells[0])


def scores_note(scores: Sequence[Sequence[float] | NDArray[np.float64]], kind: CellSummary) -> str:
    """Return the note on the smallest detectable difference for sets of scores, each [n], with the unit of ``kind``."""
    differences = [min_detectable_difference(values, kind.percent) for values in scores]
    differences = [value for value in differences if math.isfinite(value)]
    sizes = sorted({len(values) for values in scores})
    level = f"{100 * SIGNIFICANCE_LEVEL:g} %"
    if not differences:
        return f"{_n_range(sizes)} is too small to show anything at {level}"
    digits = num_decimals(max(differences), kind.percent)
    scale = 100 if kind.percent else 1
    span = " to ".join(dict.fromkeys(f"{scale * value:,.{digits}f}" for value in (min(differences), max(differences))))
    unit = "points" if kind.percent else unit_of(kind)
    n_text = _n_range([n for n in sizes if n >= MIN_DIFFERING_PAIRS])
    depending = ", depending on the cell" if " to " in span else ""
    note = (
        f"smallest difference between two rows that {n_text} could have shown at {level}: "
        f"{f'{span} {unit}'.rstrip()}{depending} ({_test_name(scores, kind)})"
    )
    return (
        f"{note}; fewer than {MIN_DIFFERING_PAIRS} examples can show nothing"
        if sizes[0] < MIN_DIFFERING_PAIRS
        else note
    )


def _n_range(sizes: Sequence[int]) -> str:
    return f"n = {sizes[0]:,}" if len(sizes) == 1 else f"n = {sizes[0]:,} to {sizes[-1]:,}"


def _test_name(scores: Sequence[Sequence[float] | NDArray[np.float64]], kind: CellSummary) -> str:
    """Return the paired test behind the detectable difference, as text."""
    rates = {kind.percent and is_rate(np.asarray(values, dtype=np.float64)) for values in scores}
    if rates == {True}:
        return f"exact McNemar test before Holm's correction: {MIN_DIFFERING_PAIRS} examples won and none lost"
    if rates == {False}:
        return "permutation test before Holm's correction; less where the rows agree on which examples are hard"
    return "exact McNemar test, of graded scores permutation test, before Holm's correction"


def difference_notes(cells: Sequence[CellSummary]) -> list[str]:
    """Return notes on cells that differ from the others in seed, dtype, engine, chat template or version of the task.

    Also notes which results others cannot measure again as they were, and which vLLM results are certified.
    """
    notes = []
    for key in _RUN_SETTINGS:
        notes += _outlier_notes(cells, key.replace("_", " "), [getattr(summary.result.spec, key) for summary in cells])
    notes += _outlier_notes(cells, "protocol", [s.result.spec.task.protocol for s in cells])
    for task in tasks_of(cells):
        notes += _task_version_notes([summary for summary in cells if summary.cell.task == task])
    return notes + caveat_notes(cells) + _parity_notes(cells)


def caveat_notes(cells: Sequence[CellSummary]) -> list[str]:
    """Return notes on cells of uncommitted code and of weights that only their digest identifies."""
    by_caveat = {caveat: [summary for summary in cells if caveat in summary.caveats] for caveat in CAVEATS}
    return [f"{CAVEATS[caveat]}: {_all_or_some(group, cells)}" for caveat, group in by_caveat.items() if group]


def mark_notes(columns: Iterable[ColumnSignificance], names: Mapping[RowKey, str]) -> list[str]:
    """Return a note on which rows are compared, where the rows of a column differ in their examples."""
    split = {column.groups for column in columns if len(column.groups) > 1}
    if not split:
        return []
    compared = sorted({group for groups in split for group in groups if len(group) > 1})
    # A row may be alone with its prompts in one column and not in another.
    alone = {group[0] for groups in split for group in groups if len(group) == 1}
    note = "not all rows of a column were given the same prompts; marks compare only those that were"
    bases = [{model for model, _ in group} for group in compared]
    if len(compared) > 1 and all(len(base) == 1 for base in bases):
        note += ": the methods of one base"
    elif len(compared) > 1:
        note += ": " + "; ".join(list_names([names[row] for row in group]) for group in compared)
    if alone:
        shown = list_names([name for row, name in names.items() if row in alone])
        note += f"; the only one with its prompts in a column, and so not marked: {shown}"
    return [note]


def _outlier_notes(cells: Sequence[CellSummary], setting: str, values: Sequence[object]) -> list[str]:
    """Return one note per value other than the most frequent one, with its cells."""
    texts = ["none" if value is None else str(value) for value in values]
    counts = Counter(texts)
    if len(counts) < 2:
        return []
    most_common = counts.most_common(1)[0][0]
    return [
        f"not the same for all cells: {setting} is {outlier}, not {most_common}, in "
        f"{describe_cells([s for s, value in zip(cells, texts, strict=True) if value == outlier], cells)}"
        for outlier in sorted(set(counts) - {most_common})
    ]


def _task_version_notes(cells: Sequence[CellSummary]) -> list[str]:
    """Return notes on cells of one task with a different task spec or different data."""
    notes = []
    specs = [_canonical(summary.result.spec.task.as_measured()) for summary in cells]
    counts = Counter(specs)
    most_common = counts.most_common(1)[0][0]
    for other_spec in sorted(set(counts) - {most_common}):
        keys = sorted({key for key, _ in set(other_spec) ^ set(most_common)})
        differing = [summary for summary, spec in zip(cells, specs, strict=True) if spec == other_spec]
        verb = "differs" if len(keys) == 1 else "differ"
        notes.append(
            f"another version of {cells[0].cell.task} ({list_names(keys)} {verb}) in {describe_cells(differing, cells)}"
        )
    digests = [s.result.spec.digests.get("data") for s in cells]
    return notes + _outlier_notes(cells, f"the digest of {cells[0].cell.task}'s data", digests)


def _parity_notes(cells: Sequence[CellSummary]) -> list[str]:
    """Return notes on which vLLM results are certified, why others are not, and the command that certifies them."""
    by_status: dict[str, list[CellSummary]] = {}
    for summary in cells:
        if summary.parity is not None:
            by_status.setdefault(str(summary.parity), []).append(summary)
    notes = [f"made by vLLM, {status}: {_all_or_some(group, cells)}" for status, group in sorted(by_status.items())]
    uncertified = [
        s for status_cells in by_status.values() for s in status_cells if s.parity and not s.parity.certified
    ]
    lengths = sorted({summary.cell.length for summary in uncertified} - {NATURAL})
    if lengths:
        names = ",".join(sorted({summary.variant for summary in uncertified}))
        dtypes = sorted({summary.result.spec.dtype for summary in uncertified})
        commands = [
            f"`longctx-bench parity {names} --length {','.join(map(str, lengths))} --dtype {dtype}`" for dtype in dtypes
        ]
        notes.append(f"to certify them: {list_names(commands)}, --out being this folder")
    return notes


def _canonical(value: Any, name: str = "") -> tuple[tuple[str, str], ...]:
    """Return a spec as sorted pairs of dotted key and text, without the protocol, which has its own note."""
    if not isinstance(value, dict):
        return ((name, str(value)),)
    pairs = [
        pair
        for key in sorted(value)
        if name or key != "protocol"
        for pair in _canonical(value[key], f"{name}.{key}".lstrip("."))
    ]
    return tuple(pairs)


def _all_or_some(group: Sequence[CellSummary], cells: Sequence[CellSummary]) -> str:
    return "all numbers" if len(group) == len(cells) else describe_cells(group, cells)


def describe_cells(subset: Sequence[CellSummary], cells: Sequence[CellSummary]) -> str:
    """Return cells as short text: a row's name where ``subset`` has all of its cells, else with tasks and lengths."""
    tasks = {summary.cell.task for summary in cells}
    num_cells: Counter[RowKey] = Counter(map(row_of, cells))
    by_row: dict[RowKey, list[Cell]] = {}
    for summary in subset:
        by_row.setdefault(row_of(summary), []).append(summary.cell)
    names = rows_of(subset)
    texts = []
    for row, row_cells in ((row, by_row[row]) for row in names):
        if len(row_cells) == num_cells[row]:
            texts.append(names[row])
        else:
            positions = [
                f"{f'{cell.task} ' if len(tasks) > 1 else ''}{length_label(cell.length)}" for cell in sorted(row_cells)
            ]
            texts.append(f"{names[row]} at {list_names(positions)}")
    return list_names(texts)


def _tunings(cells: Sequence[CellSummary]) -> list[str]:
    """Return one note per model and tuned scalar: its value at each length, and its source."""
    by_label: dict[str, dict[int, set[float]]] = {}
    for summary in cells:
        tuning = summary.result.tuning  # absent in older cells
        if tuning:
            label = f"{summary.variant}: {tuning.scalar.replace('_', ' ')} by {tuning.source}"
            by_label.setdefault(label, {}).setdefault(summary.cell.length, set()).add(tuning.value)
    return [
        f"{label}: " + ", ".join(_tuned(length, values_at) for length, values_at in sorted(by_length.items()))
        for label, by_length in sorted(by_label.items())
    ]


def _tuned_parameters(cells: Sequence[CellSummary]) -> list[str]:
    """Return one note per model whose parameters ``longctx-bench calibrate`` chose: what they are at each length."""
    by_label: dict[str, dict[int, list[str]]] = {}
    for summary in cells:
        tuned = summary.result.tuned
        if tuned is None:
            continue
        if tuned.objective == "needle-loss":
            label, text = "factors searched by the loss of needles' answers", f"those for {tuned.scale:g}x"
        else:
            label, text = f"parameters swept by {tuned.objective}", describe_parameters(tuned.parameters)
        texts = by_label.setdefault(f"{summary.variant}: {label}", {}).setdefault(summary.cell.length, [])
        texts += [] if text in texts else [text]
    return [
        f"{label}: "
        + "; ".join(f"{' or '.join(texts)} at {length_label(length)}" for length, texts in sorted(by_length.items()))
        for label, by_length in sorted(by_label.items())
    ]


def _virtual_lengths(cells: Sequence[CellSummary]) -> list[str]:
    """Return notes on models trained with virtual length, which published numbers do not use."""
    factors = {summary.variant: summary.result.virtual_length for summary in cells}
    return [
        f"{name}: trained under virtual length up to {factor:g}x, which is not part of the DroPE paper's recipe"
        for name, factor in sorted(factors.items())
        if factor is not None
    ]


def _tuned(length: int, values: set[float]) -> str:
    """Return the value of a scalar at a length; whole documents have one value per task, from its longest prompt."""
    span = " to ".join(dict.fromkeys(f"{value:.4g}" for value in (min(values), max(values))))
    return f"{span} at {length_label(length)}{' (longest prompt of each task)' if length == NATURAL else ''}"


def _is_fixed(summary: CellSummary) -> bool:
    return summary.result.factor_source == "fixed"
