"""Paired comparison of two models, cell by cell, on identical examples only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.types import NATURAL, length_name
from longctx_bench.reporting.results import CellSummary, mean_contributions
from longctx_bench.reporting.stats.paired_tests import (
    SIGNIFICANCE_LEVEL,
    PairedResult,
    holm_correction,
    paired_comparison,
)
from longctx_bench.reporting.tables.footnotes import difference_notes, method_notes
from longctx_bench.reporting.tables.formatting import caveats_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ComparedCell:
    """One task at one length, measured for both models."""

    task: str
    length: int
    """In tokens, or :data:`longctx_bench.core.types.NATURAL`."""
    scale: float | None
    """Length / training context; None for whole documents and where the two contexts differ."""
    metric: str
    percent: bool
    higher_is_better: bool
    result: PairedResult
    """In the unit of the scores: [0, 1], or nats."""
    p_holm: float
    """``result.p`` Holm-corrected over all cells of the comparison; of several, over those of the task in all."""
    caveats_a: str = ""
    """Gaps in the provenance of ``a``'s cell, :data:`~longctx_bench.reporting.results.CAVEATS`."""
    caveats_b: str = ""

    @property
    def n(self) -> int:
        """Pairs of examples."""
        return self.result.n

    @property
    def winner(self) -> int:
        """1 where ``a`` is significantly better, -1 where ``b`` is, 0 where the difference is not significant."""
        if self.p_holm >= SIGNIFICANCE_LEVEL or not self.result.difference:
            return 0
        return 1 if (self.result.difference > 0) == self.higher_is_better else -1


@dataclass(frozen=True)
class Comparison:
    """All cells that two models share."""

    a: str
    b: str
    cells: tuple[ComparedCell, ...]
    """Ordered by task as in the results, then by length."""
    refused: tuple[str, ...]
    """One line for each cell or example set left out, with the reason."""
    notes: tuple[str, ...] = ()
    """Factors, tuned scalars, and what else differs between the cells besides the method."""


def compare(cells: Sequence[CellSummary], a: str, b: str) -> Comparison:
    """Compare two models on the examples that both were given.

    Two examples are identical when their hashes are: prompt, answer prefix and references, byte for byte. Examples
    without a counterpart are left out; a line in ``refused`` gives their number and the reason.

    Args:
        cells: cells of these and any other models.
        a: a model's name, such as ``yarn-tiny``.
        b: the other model's name.

    Raises:
        UserError: there is no such model, both are the same, or they share no identical example.
    """
    measured = {summary.variant for summary in cells}
    for name in (a, b):
        if name not in measured:
            raise UserError(f"no finished cell of '{name}'{did_you_mean(name, measured)}")
    if a == b:
        raise UserError(f"'{a}' cannot be compared with itself; give two models")
    cells_a = {(s.cell.task, s.cell.length): s for s in cells if s.variant == a}
    cells_b = {(s.cell.task, s.cell.length): s for s in cells if s.variant == b}
    compared, refused = [], []
    tasks = list(dict.fromkeys(task for task, _ in cells_a))
    for key in sorted(cells_a.keys() & cells_b.keys(), key=lambda key: (tasks.index(key[0]), key[1])):
        cell, line = _compare_cell(cells_a[key], cells_b[key])
        compared += [cell] if cell else []
        refused += [line] if line else []
    if not compared:
        reason = refused[0] if refused else f"{a} and {b} share no task at one length; run both with the same --tasks"
        others = f" (and {len(refused) - 1} more such cells)" if len(refused) > 1 else ""
        raise UserError(f"nothing to compare: {reason}{others}")
    refused += [*_unmatched_cells(a, cells_a, cells_b), *_unmatched_cells(b, cells_b, cells_a)]
    corrected = holm_correction([cell.result.p for cell in compared])
    rows = tuple(replace(cell, p_holm=p) for cell, p in zip(compared, corrected, strict=True))
    used = [by_key[cell.task, cell.length] for by_key in (cells_a, cells_b) for cell in rows]
    return Comparison(a, b, rows, tuple(refused), (*method_notes(used), *difference_notes(used)))


def lines_left_out(comparisons: Sequence[Comparison]) -> list[str]:
    """Return what the comparisons refused; of several, each line begins with the model that is compared."""
    if len(comparisons) == 1:
        return list(comparisons[0].refused)
    return [f"{comparison.a}: {line}" for comparison in comparisons for line in comparison.refused]


def corrected_by_task(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return comparisons whose p values are Holm-corrected over the cells of a task in all, not over those of each."""
    p_values: dict[str, list[float]] = {}
    for comparison in comparisons:
        for cell in comparison.cells:
            p_values.setdefault(cell.task, []).append(cell.result.p)
    corrected = {task: iter(holm_correction(values)) for task, values in p_values.items()}
    return [
        replace(comparison, cells=tuple(replace(cell, p_holm=next(corrected[cell.task])) for cell in comparison.cells))
        for comparison in comparisons
    ]


def paired_contributions(a: CellSummary, b: CellSummary) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the contributions of the examples that two cells share, [n] and [n], in the order of ``a``.

    Where a cell has an example several times, first copies pair with first copies, and so on.
    """
    if np.array_equal(a.hashes, b.hashes) and np.array_equal(a.scored, b.scored):
        return a.contributions, b.contributions
    rows_b = {key: row for row, key in enumerate(_example_keys(b))}
    pairs = [(row, rows_b[key]) for row, key in enumerate(_example_keys(a)) if key in rows_b]
    return _contributions_of(a, [row for row, _ in pairs]), _contributions_of(b, [row for _, row in pairs])


def _contributions_of(summary: CellSummary, rows: list[int]) -> NDArray[np.float64]:
    scored = summary.scored[rows] if len(summary.scored) else summary.scored
    return mean_contributions(summary.scores[rows], scored)


def _example_keys(summary: CellSummary) -> list[tuple[bytes, int, int]]:
    """Return the identity of each example: hash, number of scored tokens, and number of the copy."""
    scored = summary.scored.tolist() or [1] * len(summary.scores)
    copies: Counter[tuple[bytes, int]] = Counter()
    keys = []
    for example in zip(summary.hashes.tolist(), scored, strict=True):
        keys.append((*example, copies[example]))
        copies[example] += 1
    return keys


def _compare_cell(a: CellSummary, b: CellSummary) -> tuple[ComparedCell | None, str]:
    """Compare one cell; also return a line on what was left out, empty where nothing was."""
    name = f"{a.cell.task} at {length_name(a.cell.length)}"
    if a.metric != b.metric:
        return None, f"{name}: not compared: {a.variant} is scored by {a.metric}, {b.variant} by {b.metric}"
    scores_a, scores_b = paired_contributions(a, b)
    line = ""
    if len(scores_a) < max(len(a.scores), len(b.scores)):
        counts = " and ".join(f"{len(s.scores) - len(scores_a)} of {len(s.scores)} of {s.variant}" for s in (a, b))
        line = f"{name}: examples without an identical counterpart: {counts}: {_reasons(a, b)}; "
        line += f"left out, {len(scores_a)} pairs compared" if len(scores_a) else "not compared"
    if not len(scores_a):
        return None, line or f"{name}: not compared: no examples"
    num_not_finite = int(np.count_nonzero(~(np.isfinite(scores_a) & np.isfinite(scores_b))))
    if num_not_finite:
        return None, f"{name}: not compared: {num_not_finite} of {len(scores_a)} pairs have a score that is not finite"
    percent = a.percent and b.percent
    result = paired_comparison(scores_a, scores_b, percent, a.higher_is_better)
    scale = a.scale if a.cell.length != NATURAL and a.original_length == b.original_length else None
    cell = ComparedCell(
        a.cell.task, a.cell.length, scale, a.metric, percent, a.higher_is_better, result, result.p,
        caveats_of([a]), caveats_of([b]),
    )  # fmt: skip
    return cell, line


def _reasons(a: CellSummary, b: CellSummary) -> str:
    """Describe what differs between two cells that should have the same examples."""
    spec_a, spec_b = a.result.spec, b.result.spec
    reasons = []
    if spec_a.seed != spec_b.seed:
        reasons.append(f"different seeds ({spec_a.seed} and {spec_b.seed})")
    if a.cell.model != b.cell.model:
        reasons.append(f"different base models ({a.cell.model} and {b.cell.model}), perhaps with different tokenizers")
    if spec_a.task.as_measured() != spec_b.task.as_measured():
        reasons.append("different versions of the task")
    if spec_a.chat_template != spec_b.chat_template:
        reasons.append("a chat template for one of them only")
    if len(a.scores) != len(b.scores):
        reasons.append(f"different --limit ({len(a.scores)} and {len(b.scores)} examples)")
    return ", ".join(reasons) or "different prompts"


def _unmatched_cells(
    name: str, cells: dict[tuple[str, int], CellSummary], other_cells: dict[tuple[str, int], CellSummary]
) -> list[str]:
    """List the cells of a model that the other one lacks, one line per task."""
    lengths: dict[str, list[int]] = {}
    for task, length in cells:
        if (task, length) not in other_cells:
            lengths.setdefault(task, []).append(length)
    return [
        f"{task} at {', '.join(map(length_name, sorted(unmatched)))}: measured for {name} only"
        for task, unmatched in lengths.items()
    ]
