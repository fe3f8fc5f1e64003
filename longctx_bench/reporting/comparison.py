"""Two contestants compared cell by cell, on identical examples only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.core.types import NATURAL, length_name
from longctx_bench.reporting.results import CellSummary, contributions
from longctx_bench.reporting.stats.paired_tests import LEVEL, Paired, holm, paired
from longctx_bench.reporting.tables.footnotes import difference_notes, method_notes

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class ComparedCell:
    """One task at one length, measured for both."""

    task: str
    length: int
    """In tokens, or :data:`longctx_bench.core.types.NATURAL`."""
    scale: float | None
    """Length over training context; None for whole documents and where the two contexts differ."""
    metric: str
    percent: bool
    higher_is_better: bool
    result: Paired
    """In the scores' unit: [0, 1], or nats."""
    p_holm: float
    """``result.p`` corrected for all cells of the comparison."""

    @property
    def verdict(self) -> int:
        """1 where a is better beyond chance, -1 where b is, 0 where the two cannot be told apart."""
        if self.p_holm >= LEVEL or not self.result.difference:
            return 0
        return 1 if (self.result.difference > 0) == self.higher_is_better else -1


@dataclass(frozen=True)
class Comparison:
    """All cells that two contestants share."""

    a: str
    b: str
    cells: tuple[ComparedCell, ...]
    """By task in the order of the results, then by length."""
    refused: tuple[str, ...]
    """One line for what was left out of the comparison, and why."""
    notes: tuple[str, ...] = ()
    """How the cells came about, and what differs between them besides the method."""


def compare(cells: Sequence[CellSummary], a: str, b: str) -> Comparison:
    """Compare two contestants on the examples that both were given.

    Two examples are the same when their hashes are: prompt, answer prefix and references, byte for byte. Those
    without a counterpart enter no mean; a line in ``refused`` counts them and says why.

    Args:
        cells: of these and any other contestants.
        a: a contestant's name, such as ``yarn-tiny``.
        b: another's.

    Raises:
        UserError: there is no such contestant, both are the same, or no example of theirs is identical.
    """
    known = {summary.contestant for summary in cells}
    for name in (a, b):
        if name not in known:
            raise UserError(f"no finished cell of '{name}'{did_you_mean(name, known)}")
    if a == b:
        raise UserError(f"'{a}' cannot be compared with itself; name two contestants")
    of_a = {(s.cell.task, s.cell.length): s for s in cells if s.contestant == a}
    of_b = {(s.cell.task, s.cell.length): s for s in cells if s.contestant == b}
    compared, refused = [], []
    tasks = list(dict.fromkeys(task for task, _ in of_a))
    for place in sorted(of_a.keys() & of_b.keys(), key=lambda place: (tasks.index(place[0]), place[1])):
        cell, line = _compared(of_a[place], of_b[place])
        compared += [cell] if cell else []
        refused += [line] if line else []
    if not compared:
        why = refused[0] if refused else f"{a} and {b} share no task at one length; run both with the same --tasks"
        more = f" (and {len(refused) - 1} more such cells)" if len(refused) > 1 else ""
        raise UserError(f"nothing to compare: {why}{more}")
    refused += [*_alone(a, of_a, of_b), *_alone(b, of_b, of_a)]
    corrected = holm([cell.result.p for cell in compared])
    rows = tuple(replace(cell, p_holm=p) for cell, p in zip(compared, corrected, strict=True))
    used = [own[cell.task, cell.length] for own in (of_a, of_b) for cell in rows]
    return Comparison(a, b, rows, tuple(refused), (*method_notes(used), *difference_notes(used)))


def matched(a: CellSummary, b: CellSummary) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what the examples that two cells share contribute to their scores, in the order of the first, [n] and [n].

    Of examples that a cell has several times, the first pairs with the first, and so on.
    """
    if np.array_equal(a.hashes, b.hashes) and np.array_equal(a.scored, b.scored):
        return a.values, b.values
    places = {key: place for place, key in enumerate(_keys(b))}
    pairs = [(place, places[key]) for place, key in enumerate(_keys(a)) if key in places]
    left, right = [one for one, _ in pairs], [other for _, other in pairs]
    return _shared(a, left), _shared(b, right)


def _shared(summary: CellSummary, places: list[int]) -> NDArray[np.float64]:
    scored = summary.scored[places] if len(summary.scored) else summary.scored
    return contributions(summary.scores[places], scored)


def _keys(summary: CellSummary) -> list[tuple[bytes, int, int]]:
    """Return what makes examples identical: prompt and references, the tokens whose loss counts, and which copy."""
    scored = summary.scored.tolist() or [1] * len(summary.scores)
    seen: Counter[tuple[bytes, int]] = Counter()
    keys = []
    for found in zip(summary.hashes.tolist(), scored, strict=True):
        keys.append((*found, seen[found]))
        seen[found] += 1
    return keys


def _compared(a: CellSummary, b: CellSummary) -> tuple[ComparedCell | None, str]:
    """Compare one cell; also return the line that says what of it was left out, empty where nothing was."""
    name = f"{a.cell.task} at {length_name(a.cell.length)}"
    if a.metric != b.metric:
        return None, f"{name}: not compared: {a.contestant} is scored by {a.metric}, {b.contestant} by {b.metric}"
    left, right = matched(a, b)
    line = ""
    if len(left) < max(len(a.scores), len(b.scores)):
        counts = " and ".join(f"{len(s.scores) - len(left)} of {len(s.scores)} of {s.contestant}" for s in (a, b))
        line = f"{name}: examples without an identical counterpart: {counts}: {_why(a, b)}; "
        line += f"left out, {len(left)} pairs compared" if len(left) else "not compared"
    if not len(left):
        return None, line or f"{name}: not compared: no examples"
    broken = int(np.count_nonzero(~(np.isfinite(left) & np.isfinite(right))))
    if broken:
        return None, f"{name}: not compared: {broken} of {len(left)} pairs have a score that is no finite number"
    percent = a.percent and b.percent
    result = paired(left, right, percent, a.higher_is_better)
    scale = a.scale if a.cell.length != NATURAL and a.original_length == b.original_length else None
    cell = ComparedCell(
        a.cell.task, a.cell.length, scale, a.metric, percent, a.higher_is_better, result, p_holm=result.p
    )
    return cell, line


def _why(a: CellSummary, b: CellSummary) -> str:
    """Say what differs between two cells that should have had the same examples."""
    left, right = a.result.spec, b.result.spec
    reasons = []
    if left.seed != right.seed:
        reasons.append(f"different seeds ({left.seed} and {right.seed})")
    if a.cell.model != b.cell.model:
        reasons.append(f"different base models ({a.cell.model} and {b.cell.model}), perhaps with different tokenizers")
    if left.task.as_measured() != right.task.as_measured():
        reasons.append("different versions of the task")
    if left.chat_template != right.chat_template:
        reasons.append("a chat template for one of them only")
    if len(a.scores) != len(b.scores):
        reasons.append(f"different --limit ({len(a.scores)} and {len(b.scores)} examples)")
    return ", ".join(reasons) or "different prompts"


def _alone(name: str, own: dict[tuple[str, int], CellSummary], other: dict[tuple[str, int], CellSummary]) -> list[str]:
    lengths: dict[str, list[int]] = {}
    for task, length in own:
        if (task, length) not in other:
            lengths.setdefault(task, []).append(length)
    return [
        f"{task} at {', '.join(map(length_name, sorted(found)))}: measured for {name} alone"
        for task, found in lengths.items()
    ]
