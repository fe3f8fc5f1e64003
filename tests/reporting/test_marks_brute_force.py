"""Significance marks, p-values and detectable differences against brute force over all outcomes of few examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from helpers.table_cells import cell

from longctx_bench.reporting.stats.paired_tests import min_detectable_difference
from longctx_bench.reporting.tables.base import Mark
from longctx_bench.reporting.tables.scores_by_length import length_tables
from longctx_bench.reporting.tables.significance import column_entry, compare_rows

pytestmark = pytest.mark.slow

Counts = tuple[int, int, int, int]
"""Pairs of which both are right, only the first, only the second, neither: all that McNemar's test can see."""


def outcomes(n: int) -> list[Counts]:
    places = itertools.product(range(n + 1), repeat=3)
    return [(both, won, lost, n - both - won - lost) for both, won, lost in places if both + won + lost <= n]


def rows_of(counts: Counts) -> tuple[list[float], list[float]]:
    both, won, lost, neither = counts
    return [1.0] * (both + won) + [0.0] * (lost + neither), [1.0] * both + [0.0] * won + [1.0] * lost + [0.0] * neither


def sign_test(won: int, lost: int) -> float:
    """McNemar's p by counting: of all 2 ** k ways that k fair coins fall, those at least as one-sided as this one."""
    pairs = won + lost
    hits = sum(math.comb(pairs, heads) for heads in range(pairs + 1) if abs(2 * heads - pairs) >= abs(won - lost))
    return hits / 2**pairs


def flip_test(a: np.ndarray, b: np.ndarray) -> float:
    """The permutation test by flipping the signs of all pairs, ties included."""
    differences = a - b
    flipped = np.array(list(itertools.product((1, -1), repeat=len(differences)))) @ differences
    return float((np.abs(flipped) >= abs(differences.sum()) - 1e-9).mean())


@pytest.mark.parametrize(("p", "mark"), [(0.0499, Mark.NONE), (0.05, Mark.CLOSE)])
def test_a_p_of_five_percent_is_not_significant(monkeypatch: pytest.MonkeyPatch, p: float, mark: Mark) -> None:
    # No test of few right and wrong answers reaches it exactly; one of 9,999 permutations may.
    monkeypatch.setattr("longctx_bench.reporting.tables.significance.paired_test", lambda *_: ("a test", p))
    column = [column_entry(cell(name, scores)) for name, scores in (("a", [1.0] * 12), ("b", [0.0] * 12))]
    assert {row[1]: verdict.mark for row, verdict in compare_rows(column).by_row.items()} == {"a": Mark.BEST, "b": mark}


@pytest.mark.parametrize("n", range(1, 13))
def test_two_rows_right_or_wrong(n: int) -> None:
    smallest = math.inf
    # By how many the best has right: whether any row that is worse could be told from it.
    can_show = {
        right: any(
            sign_test(won, lost) < 0.05 for both, won, lost, _ in outcomes(n) if both + won == right and won > lost
        )
        for right in range(n + 1)
    }
    for counts in outcomes(n):
        both, won, lost, _ = counts
        p = sign_test(won, lost)
        if p < 0.05:
            smallest = min(smallest, abs(won - lost) / n)
        first, second = (cell(name, scores) for name, scores in zip("ab", rows_of(counts), strict=True))
        found = {row[1]: verdict for row, verdict in compare_rows(map(column_entry, (first, second))).by_row.items()}
        marks = {name: verdict.mark for name, verdict in found.items()}
        if won == lost:
            assert set(marks.values()) == {Mark.NONE}
            continue
        best, other = ("a", "b") if won > lost else ("b", "a")
        assert found[other].p == pytest.approx(p)
        if not can_show[both + max(won, lost)]:
            assert set(marks.values()) == {Mark.NONE}
        else:
            assert marks == {best: Mark.BEST, other: Mark.NONE if p < 0.05 else Mark.CLOSE}
    assert min_detectable_difference([1.0] * n) == pytest.approx(smallest)
    [table] = length_tables([cell("a", [1.0] * n), cell("b", [0.0] * n)])
    said = [note for note in table.notes if "too small to show anything" in note]
    assert bool(said) == (smallest == math.inf) == (n < 6)


@pytest.mark.parametrize("n", range(1, 13))
@pytest.mark.parametrize("rows", [2, 3, 5])
@pytest.mark.parametrize("graded", [False, True])
def test_several_rows_with_holm(n: int, rows: int, graded: bool) -> None:
    random = np.random.default_rng([n, rows, graded])
    values = (0, 0.25, 0.5, 1) if graded else (0, 1)
    for _ in range(12):
        scores = [random.choice(values, n, p=_shares(random, len(values))) for _ in range(rows)]
        found = compare_rows(column_entry(cell(f"row-{place}", list(own))) for place, own in enumerate(scores)).by_row
        top = max(own.mean() for own in scores)
        best = next(own for own in scores if math.isclose(own.mean(), top))
        others = {f"row-{place}": own for place, own in enumerate(scores) if not math.isclose(own.mean(), top)}
        marks = {name: verdict.mark for (_, name), verdict in found.items()}
        ranked = sorted(others, key=lambda name: flip_test(best, others[name]))
        corrected, highest = {}, 0.0
        for rank, name in enumerate(ranked):
            highest = max(highest, min(1.0, (len(ranked) - rank) * flip_test(best, others[name])))
            corrected[name] = highest
        for name, p in corrected.items():
            assert found["tiny", name].p == pytest.approx(p)
        # Nothing is worse than no point on any example: where not even that shows, no mark may stand.
        could = bool(others) and len(others) * flip_test(best, np.zeros(n)) < 0.05
        if not could:
            assert set(marks.values()) == {Mark.NONE}
            continue
        for name, mark in marks.items():
            wanted = Mark.BEST if name not in others else Mark.NONE if corrected[name] < 0.05 else Mark.CLOSE
            assert mark is wanted


def _shares(random: np.random.Generator, count: int) -> np.ndarray:
    """Return the chances of each value: rows of all kinds, from nearly all wrong to nearly all right."""
    return random.dirichlet([0.4] * count)
