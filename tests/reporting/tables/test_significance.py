"""Significance marks: best entries, and those not significantly worse."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from helpers.table_cells import cell, hits

from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.stats.paired_tests import holm_correction, min_attainable_p, paired_comparison
from longctx_bench.reporting.tables.base import Entry, Mark
from longctx_bench.reporting.tables.scores_by_length import length_tables
from longctx_bench.reporting.tables.scores_by_task import task_tables
from longctx_bench.reporting.tables.significance import column_entry, compare_rows


def marks_of(*cells: CellSummary) -> dict[str, str]:
    """Return by method the marks of one column."""
    found = compare_rows(map(column_entry, cells))
    return {method: verdict.mark.value for (_, method), verdict in found.by_row.items()}


def test_the_best_is_marked_and_what_could_be_as_good() -> None:
    found = marks_of(cell("rope", hits(10)), cell("yarn", hits(90)), cell("ntk", hits(88)), cell("pi", hits(60)))
    assert found == {"rope": "", "yarn": "best", "ntk": "not significantly worse", "pi": ""}


def test_lower_losses_are_better() -> None:
    losses = np.linspace(2, 4, 40)
    worse, alike = losses + 1, losses + np.resize([0.1, -0.09], 40)
    cells = [cell(name, own, metric="token_loss") for name, own in (("rope", worse), ("yarn", losses), ("ntk", alike))]
    assert marks_of(*cells) == {"rope": "", "yarn": "best", "ntk": "not significantly worse"}


def test_equal_means_are_all_best_unless_there_is_nothing_better_or_worse() -> None:
    assert marks_of(cell("rope", hits(0)), cell("yarn", hits(0))) == {"rope": "", "yarn": ""}
    assert marks_of(cell("rope", hits(100)), cell("yarn", hits(100))) == {"rope": "", "yarn": ""}
    crossed = [0.0] * 50 + [1.0] * 50
    found = marks_of(cell("rope", hits(50)), cell("yarn", crossed), cell("pi", hits(10)))
    assert found == {"rope": "best", "yarn": "best", "pi": ""}


def test_a_column_of_one_row_has_no_mark() -> None:
    assert marks_of(cell("rope", hits(100))) == {"rope": ""}


def test_holm_counts_all_rows_of_the_column() -> None:
    best, near = hits(100), hits(93)
    p = paired_comparison(np.array(best), np.array(near)).p
    assert 0.05 / 4 < p < 0.05
    assert marks_of(cell("yarn", best), cell("near", near))["near"] == ""
    many = [cell(f"near-{place}", near) for place in range(4)]
    found = compare_rows(map(column_entry, [cell("yarn", best), *many]))
    assert {verdict.mark for (_, method), verdict in found.by_row.items() if method != "yarn"} == {Mark.CLOSE}
    assert found.by_row["tiny", "near-0"].p == pytest.approx(holm_correction([p] * 4)[0])
    assert found.by_row["tiny", "yarn"].p is None


def test_other_prompts_are_compared_with_nothing() -> None:
    cells = [cell("rope", hits(10)), cell("yarn", hits(40)), cell("rope", hits(100), model="big", prompts="b")]
    found = compare_rows(map(column_entry, cells)).by_row
    assert {row: verdict.mark for row, verdict in found.items()} == {
        ("tiny", "rope"): Mark.NONE,
        ("tiny", "yarn"): Mark.BEST,
        ("big", "rope"): Mark.NONE,
    }
    [table] = length_tables(cells)
    [note] = [note for note in table.notes if "same prompts" in note]
    assert note.endswith("and so not marked: rope-big")


def test_fewer_examples_are_other_examples() -> None:
    assert marks_of(cell("rope", hits(10, 22)), cell("yarn", hits(100, 100))) == {"rope": "", "yarn": ""}


def test_each_base_has_its_own_best() -> None:
    cells = [
        cell(method, hits(score), model=model, prompts=model)
        for model, scores in (("a", (1, 90)), ("b", (70, 2)))
        for method, score in zip(("rope", "yarn"), scores, strict=True)
    ]
    [table] = length_tables(cells)
    assert [row[1].mark for row in table.rows if isinstance(row[1], Entry)] == [
        Mark.NONE,
        Mark.BEST,
        Mark.BEST,
        Mark.NONE,
    ]
    assert any(note.endswith("marks compare only those that were: the methods of one base") for note in table.notes)


def test_a_score_that_is_no_number_has_no_place() -> None:
    broken = dataclasses.replace(cell("pi", [float("nan"), *hits(10, 99)]), score=float("nan"))
    assert marks_of(broken, cell("rope", hits(50)), cell("yarn", hits(1))) == {"pi": "", "rope": "best", "yarn": ""}


def test_a_mean_over_tokens_is_no_sign_where_the_examples_say_otherwise() -> None:
    # The weighted mean is worse, the mean over examples significantly better: nothing shows that it is worse.
    better = dataclasses.replace(cell("yarn", [2.0 + 0.001 * i for i in range(30)], metric="token_loss"), score=3.1)
    worse = dataclasses.replace(cell("rope", [4.0 + 0.002 * i for i in range(30)], metric="token_loss"), score=3.0)
    assert marks_of(better, worse) == {"yarn": "not significantly worse", "rope": "best"}


def test_the_average_is_marked_over_the_examples_of_all_tasks() -> None:
    cells = [
        cell(method, hits(score), task=task)
        for method, scores in (("rope", (95, 20)), ("yarn", (96, 90)), ("ntk", (94, 91)))
        for task, score in zip(("niah", "vt"), scores, strict=True)
    ]
    [table] = task_tables(cells)
    assert table.header == ("model", "niah", "vt", "average")
    assert {row[0]: (str(row[-1]), row[-1].mark) for row in table.rows if isinstance(row[-1], Entry)} == {
        "rope-tiny": ("57.5", Mark.NONE),
        "ntk-tiny": ("92.5", Mark.CLOSE),
        "yarn-tiny": ("93.0", Mark.BEST),
    }


@pytest.mark.parametrize("n", [2, 4, 5])
def test_no_mark_where_so_few_examples_cannot_be_significant(n: int) -> None:
    assert marks_of(cell("rope", hits(0, n)), cell("yarn", hits(n, n))) == {"rope": "", "yarn": ""}
    losses = [2.0 + 0.1 * place for place in range(n)]
    worse = [loss + 1 for loss in losses]
    assert set(marks_of(cell("a", losses, metric="token_loss"), cell("b", worse, metric="token_loss")).values()) == {""}


def test_a_mark_needs_a_p_that_holm_leaves_below_the_level() -> None:
    # 2 / 2 ** 6 is 3.1 %: enough for one other row, not for two.
    six = hits(6, 6)
    assert marks_of(cell("yarn", six), cell("pi", hits(0, 6))) == {"yarn": "best", "pi": ""}
    assert set(marks_of(cell("yarn", six), cell("pi", hits(0, 6)), cell("ntk", hits(3, 6))).values()) == {""}


def test_no_mark_where_the_best_is_right_too_seldom_to_be_told_from_nothing() -> None:
    found = compare_rows(map(column_entry, [cell("rope", hits(0)), cell("yarn", hits(5))])).by_row
    assert {verdict.mark for verdict in found.values()} == {Mark.NONE}
    assert found["tiny", "rope"].p == pytest.approx(2**-4)
    assert marks_of(cell("rope", hits(0)), cell("yarn", hits(6))) == {"rope": "", "yarn": "best"}


@pytest.mark.parametrize("bounded", [True, False])
def test_no_test_comes_below_the_smallest_p(bounded: bool) -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        best = random.choice([0, 0.25, 1], int(random.integers(1, 12)))
        other = random.choice([0, 0.1, 0.5, 1], best.size)
        if best.mean() > other.mean():
            assert paired_comparison(best, other, bounded).p >= min_attainable_p(best, bounded) - 1e-12
