"""Content of tables: order, rounding, empty entries, averages, notes, cost, effective length."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from helpers.table_cells import cell, hits

from longctx_bench.core.types import NATURAL
from longctx_bench.metrics.length_buckets import ScoredExample
from longctx_bench.reporting.comparison import compare
from longctx_bench.reporting.formats import FORMATS
from longctx_bench.reporting.results import CellSummary
from longctx_bench.reporting.tables.base import Entry, Mark, Table
from longctx_bench.reporting.tables.comparison_tables import comparison_tables, exact_table
from longctx_bench.reporting.tables.cost import cost_tables
from longctx_bench.reporting.tables.formatting import interval_entry, num_decimals
from longctx_bench.reporting.tables.registry import TABLE_KINDS, report_tables
from longctx_bench.reporting.tables.scores_by_length import length_tables
from longctx_bench.reporting.tables.scores_by_task import task_tables
from longctx_bench.reporting.tables.summary import summary_tables
from longctx_bench.store.schema import to_builtins


def shown(table: Table) -> list[list[str]]:
    return [[str(entry) for entry in row] for row in table.rows]


def notes_with(table: Table, part: str) -> list[str]:
    return [note for note in table.notes if part in note]


@pytest.mark.parametrize(
    ("values", "percent", "signed", "text"),
    [
        ((1.0, 0.981, 1.0), True, False, "100.0 [98.1, 100.0]"),
        ((0.305, 0.25, 0.38), True, False, "30 [25, 38]"),
        ((2.5, 2.45, 2.55), False, False, "2.500 [2.450, 2.550]"),
        ((2.5, 2.2, 2.8), False, False, "2.50 [2.20, 2.80]"),
        ((1234.5, 1200.0, 1300.0), False, False, "1,234.5 [1,200.0, 1,300.0]"),
        ((2.5, -math.inf, math.inf), False, False, "2.500"),
        ((0.12, 0.03, 0.21), True, True, "+12 [+3, +21]"),
        ((-0.0004, -0.03, 0.0302), True, True, "0.0 [-3.0, +3.0]"),
    ],
)
def test_numbers_are_rounded_by_their_interval(
    values: tuple[float, float, float], percent: bool, signed: bool, text: str
) -> None:
    assert str(interval_entry(*values, percent, signed=signed)) == text


@pytest.mark.parametrize(
    ("width", "percent", "digits"),
    [(0.099, True, 1), (0.1, True, 0), (0.199, False, 3), (0.2, False, 2), (9.99, False, 2), (10, False, 1),
     (math.inf, False, 3), (math.inf, True, 0)],
)  # fmt: skip
def test_digits_follow_the_width_of_the_interval(width: float, percent: bool, digits: int) -> None:
    assert num_decimals(width, percent) == digits


def test_rows_and_columns_have_one_order_whatever_comes_first() -> None:
    cells = [
        cell(method, hits(50), length=length, task=task, model=model)
        for method in ("yarn", "rope", "alibi")
        for model in ("tiny", "base")
        for task in ("vt", "niah")
        for length in (2048, 512)
    ]
    forward, backward = length_tables(cells), length_tables(cells[::-1])
    assert [(t.title, t.header, shown(t), t.notes) for t in forward] == [
        (t.title, t.header, shown(t), t.notes) for t in backward
    ]
    assert [table.title.partition(":")[0] for table in forward] == ["niah", "vt"]
    assert [row[0] for row in forward[0].rows] == [
        "rope-base", "alibi-base", "yarn-base", "rope-tiny", "alibi-tiny", "yarn-tiny",
    ]  # fmt: skip
    assert forward[0].header == ("model", "512 (1x)", "2,048 (4x)")


def test_what_was_not_measured_is_empty() -> None:
    [table] = length_tables([cell("rope", hits(50), length=512), cell("yarn", hits(50), length=1024)])
    assert [row[2] for row in shown(table)] == ["", "50 [40, 60]"]
    assert [row[1] for row in shown(table)] == ["50 [40, 60]", ""]


def test_title_and_notes_say_unit_direction_n_and_the_smallest_difference() -> None:
    [table] = length_tables([cell("rope", hits(50)), cell("yarn", hits(50))])
    assert table.title == "niah: string_match_all in % [95 % interval], higher is better, n = 100 a cell"
    [note] = notes_with(table, "smallest difference")
    assert "n = 100 could have shown at 5 %: 6.0 points (exact McNemar" in note
    [table] = length_tables([cell("rope", np.linspace(0, 1, 50)), cell("yarn", np.linspace(0, 1, 50))])
    [note] = notes_with(table, "smallest difference")
    # 1.960 sqrt(2 v / (n - 1.960^2)) for the permutation test.
    assert (
        f"{196 * math.sqrt(2 * np.linspace(0, 1, 50).var(ddof=1) / (50 - 1.96**2)):.0f} points (permutation test"
        in note
    )
    [table] = length_tables([cell("rope", [2.0, 3.0], metric="token_loss"), cell("yarn", [1.0], metric="token_loss")])
    assert table.title == "niah: token_loss in nats a token [95 % interval], lower is better, n = 1 to 2 a cell"
    [table] = length_tables([cell("rope", [2.0], metric="token_loss")])
    assert notes_with(table, "smallest") == []
    assert notes_with(table, "too small") == ["n = 1 is too small to show anything at 5 %"]


@pytest.mark.parametrize("n", [2, 4, 5])
def test_too_few_examples_show_nothing(n: int) -> None:
    tables = report_tables([cell(name, hits(n if name == "yarn" else 0, n)) for name in ("rope", "yarn")], "all")
    for table in tables[:1]:
        assert notes_with(table, "smallest difference") == []
        assert notes_with(table, "5 %") == [f"n = {n} is too small to show anything at 5 %"]
        assert {entry.mark for row in table.rows for entry in row if isinstance(entry, Entry)} == {Mark.NONE}
    assert csv.DictReader(io.StringIO(FORMATS["csv"](tables))).__next__()["detectable_difference"] == "inf"


def test_a_table_of_large_and_small_cells_says_which_show_nothing() -> None:
    [table] = length_tables([cell("rope", hits(50)), cell("yarn", hits(2, 4))])
    [note] = notes_with(table, "smallest difference")
    assert "n = 100 could have shown" in note
    assert note.endswith("fewer than 6 examples can show nothing")


def test_tuned_scalars_have_thousands_separators() -> None:
    cells = [
        cell(
            "drope",
            hits(5),
            length=length,
            details={"tuning": {"scalar": "temperature", "value": v, "source": "paper"}},
        )
        for length, v in ((512, 1.0), (4096, 1.8571))
    ]
    assert "drope-tiny: temperature by paper: 1 at 512, 1.857 at 4,096" in length_tables(cells)[0].notes


def test_tuned_parameters_are_named_at_each_length() -> None:
    chosen = {512: None, 1024: {"group": 4, "window": 32}, 2048: {}}
    cells = [
        cell(
            "self-extend+tuned",
            hits(5),
            length=length,
            details=None
            if found is None
            else {"tuned": {"scale": length / 512, "parameters": found, "objective": "retrieval"}},
        )
        for length, found in chosen.items()
    ]
    [note] = notes_with(length_tables(cells)[0], "swept")
    assert note == (
        "self-extend+tuned-tiny: parameters swept by retrieval: group 4, window 32 at 1,024; its own at 2,048"
    )
    searched = {"scale": 4.0, "parameters": {"long_factor": [1.0, 2.0]}, "objective": "needle-loss"}
    [note] = notes_with(length_tables([cell("longrope", hits(5), 2048, details={"tuned": searched})])[0], "searched")
    assert note == "longrope-tiny: factors searched by the loss of needles' answers: those for 4x at 2,048"


def priced_cells() -> list[CellSummary]:
    """rope, a method that loses 20 of 100 at 1x, one that is the base there, one that was not measured there."""
    return [
        cell("rope", hits(90), 512),
        cell("rope", hits(0), 1024),
        cell("yarn@4x", hits(70), 512),
        cell("yarn@4x", hits(80), 1024),
        cell("yarn", hits(90), 512),
        cell("pi", hits(80), 1024),
        cell("ntk", hits(90), 512, prompts="b"),
        cell("rope", [2.0, 3.0], 512, "loss", metric="token_loss"),
        cell("yarn@4x", [2.5, 3.5], 512, "loss", metric="token_loss"),
        cell("rope", hits(3), 1024, "vt"),
    ]


def test_the_price_at_1x_is_a_column_when_asked() -> None:
    plain, priced = length_tables(priced_cells()), length_tables(priced_cells(), price=True)
    loss, niah, vt = priced
    assert vt == plain[2], "no row has a price"
    assert niah.header == (*plain[1].header, "1x - base (points)")
    assert [row[:-1] for row in niah.rows] == list(plain[1].rows)
    prices = {row[0]: str(row[-1]) for row in niah.rows}
    assert prices["yarn@4x-tiny"].startswith("-20 [")
    assert prices["yarn-tiny"].startswith("0")
    assert prices["rope-tiny"] == prices["pi-tiny"] == prices["ntk-tiny"] == ""
    assert loss.header[-1] == "1x - base (nats a token)"
    assert str(loss.rows[1][-1]).startswith("+0.5")
    assert notes_with(niah, "1x - base")


@pytest.mark.parametrize("form", ["md", "latex", "csv", "json", "html"])
def test_every_format_has_the_price(form: str) -> None:
    text = FORMATS[form](length_tables(priced_cells(), price=True))
    assert ("price_low" if form in ("csv", "json") else "1x - base (points)") in text


def test_the_price_is_a_number_of_the_cell_at_1x() -> None:
    lines = csv.DictReader(io.StringIO(FORMATS["csv"](length_tables(priced_cells(), price=True))))
    prices = {(line["model"], line["task"], line["length"]): line["price"] for line in lines if line["price"]}
    assert {key: float(price) for key, price in prices.items()} == {
        ("yarn@4x-tiny", "niah", "512"): pytest.approx(-0.2),
        ("yarn-tiny", "niah", "512"): 0,
        ("yarn@4x-tiny", "loss", "512"): 0.5,
    }


def test_fixed_and_derived_factors_are_both_named() -> None:
    fixed = {"factor": 8.0, "factor_source": "fixed"}
    [table] = length_tables([cell("rope", hits(5)), cell("yarn", hits(5), details=fixed)])
    assert "yarn-tiny: factor fixed at 8" in table.notes
    assert notes_with(table, "factors derived from the length")
    [table] = length_tables([cell("yarn", hits(5), details=fixed)])
    assert not notes_with(table, "factors derived from the length")


def test_cells_that_differ_are_named() -> None:
    cells = [cell(name, hits(50), length=length) for name in ("rope", "pi") for length in (512, 1024)]
    cells += [cell("yarn", hits(50), length=length, spec={"seed": 43}) for length in (512, 1024)]
    cells += [cell("ntk", hits(50), length=512), cell("ntk", hits(50), length=1024, spec={"dtype": "float32"})]
    [table] = length_tables(cells)
    assert notes_with(table, "not the same") == [
        "not the same for all cells: seed is 43, not 42, in yarn-tiny",
        "not the same for all cells: dtype is float32, not bfloat16, in ntk-tiny at 1,024",
    ]


def test_versions_of_a_task_and_protocols_are_named() -> None:
    usual = {"params": {"keys": 1, "essays": {"member": "a"}}}
    other = {"params": {"keys": 4, "essays": {"member": "b"}}}
    cells = [cell(name, hits(50), task_spec=usual) for name in ("rope", "pi")]
    cells += [
        cell("yarn", hits(50), task_spec=other),
        cell("ntk", hits(50), task_spec=usual | {"protocol": "ruler@paper"}),
    ]
    cells += [cell("crop", hits(50), task_spec=usual, spec={"digests": {"data": "f00"}})]
    [table] = length_tables(cells)
    assert notes_with(table, "another version") == [
        "another version of niah (params.essays.member, params.keys differ) in yarn-tiny"
    ]
    assert notes_with(table, "protocol") == [
        "not the same for all cells: protocol is ruler@paper, not longctx-bench, in ntk-tiny"
    ]
    assert notes_with(table, "digest") == [
        "not the same for all cells: the digest of niah's data is f00, not none, in crop-tiny"
    ]


def test_cells_of_one_kind_get_no_note_of_differences() -> None:
    [table] = length_tables([cell("rope", hits(50)), cell("yarn", hits(50))])
    assert not notes_with(table, "not the same") + notes_with(table, "another version") + notes_with(table, "prompts")


def test_documents_are_sorted_by_length_beside_the_scores() -> None:
    points = [ScoredExample(1.0, 600, None), ScoredExample(0.0, 700, None), ScoredExample(1.0, 3000, None)]
    table = length_tables([cell("rope", [1, 0, 1], NATURAL, "qasper", points=points)])[1]
    assert table.title.startswith("qasper at natural, by the documents' length: ")
    assert shown(table) == [["rope-tiny", "50 [9, 91] (2)", "", "100 [21, 100] (1)", "", ""]]
    assert table.header[1] == "0-2x"
    assert notes_with(table, "n = 1 to 2 is too small")
    assert table.records[0]["score 0-2x"] == 0.5


def test_tasks_stand_beside_each_other_where_two_were_measured() -> None:
    cells = [cell("rope", hits(50), task=task, length=512) for task in ("vt", "niah")]
    cells += [cell("rope", hits(50), task="niah", length=1024)]
    [table] = task_tables(cells)
    assert table.title == "512 tokens (1x): string_match_all in % [95 % interval], higher is better, n = 100 a cell"
    assert table.header == ("model", "niah", "vt", "average")


def test_an_average_needs_every_task_in_per_cent_from_every_method() -> None:
    both = [cell(name, hits(50), task=task) for name in ("rope", "yarn") for task in ("niah", "vt")]
    assert task_tables(both)[0].header[-1] == "average"
    assert task_tables(both[:-1])[0].header == ("model", "niah", "vt")
    losses = [cell(name, [2.0, 3.0], task="perplexity", metric="token_loss") for name in ("rope", "yarn")]
    [table] = task_tables(both + losses)
    assert table.header == ("model", "niah (%)", "perplexity (nats a token, lower is better)", "vt (%)")
    assert "higher is better unless the column says otherwise" in table.title
    assert notes_with(table, "metrics: string_match_all: niah, vt; token_loss: perplexity")
    assert len(notes_with(table, "smallest difference")) == 1
    assert notes_with(table, "too small") == ["n = 2 is too small to show anything at 5 %"]


def test_an_average_of_unequal_numbers_of_examples_has_no_mark() -> None:
    cells = [cell(name, hits(50, n), task=task) for name in ("rope", "yarn") for task, n in (("niah", 100), ("vt", 50))]
    [table] = task_tables(cells)
    assert [entry.mark.value for row in table.rows if not isinstance(entry := row[-1], str)] == ["", ""]
    assert shown(table)[0][-1] == "75"


def test_summary_says_reach_retention_and_bias() -> None:
    cells = [cell("rope", hits(90), length=512), cell("rope", hits(10), length=1024)]
    cells += [
        cell("yarn", hits(80), length=512),
        cell("yarn", hits(70), length=1024),
        cell("yarn", hits(0), length=2048),
    ]
    [table] = summary_tables(cells)
    rows = {row[0]: row[1:] for row in shown(table)}
    assert table.header[1:] == (
        "effective length (85 % of own 1x)", "effective length (85.6 %)", "retention (%)", "difference at 1x (points)",
    )  # fmt: skip
    assert [text.partition(" [")[0] for text in rows["rope-tiny"]] == ["512", "512", "", ""]
    assert [text.partition(" [")[0] for text in rows["yarn-tiny"]] == ["1,024", "< 512", "89", "-10"]
    by_method = {record["method"]: record for record in table.records}
    assert by_method["yarn"]["retention"] == pytest.approx(80 / 90)
    assert by_method["yarn"]["difference_at_1x"] == pytest.approx(-0.1)
    assert by_method["rope"]["retention"] is None


def test_a_length_that_was_not_passed_is_a_lower_bound() -> None:
    [table] = summary_tables([cell("yarn", hits(100), length=length) for length in (512, 1024)])
    assert shown(table)[0][1].startswith("≥ 1,024 [")


def test_retention_needs_the_same_prompts_at_the_training_context() -> None:
    other = [cell("rope", hits(90), length=512), cell("yarn", hits(80), length=512, prompts="b")]
    assert summary_tables(other)[0].header[-1] == "effective length (85.6 %)"
    longer = [cell("rope", hits(90), length=1024), cell("yarn", hits(80), length=1024)]
    assert summary_tables(longer)[0].header == ("model", "effective length (85.6 %)")
    losses = [cell(name, [2.0, 2.1, level], 512, metric="token_loss") for name, level in (("rope", 2.0), ("yarn", 2.6))]
    [table] = summary_tables(losses)
    assert table.header == ("model", "difference at 1x (nats a token)")
    assert shown(table)[1][1].startswith("+0.2")
    assert summary_tables([cell("rope", [0.5], NATURAL, "qasper")]) == []


def test_position_bias_is_a_slope_with_the_worst_depth() -> None:
    depths = [0.0, 50.0, 100.0] * 10
    rising = cell("rope", [0.0, 1.0, 1.0] * 10, depths=depths)
    level = cell("yarn", [1.0] * 30, depths=depths)
    table = summary_tables([rising, level])[1]
    assert "position bias" in table.title
    assert shown(table)[0][1].startswith("+100 [")
    assert shown(table)[0][1].endswith("], 0 at 0 %")
    assert shown(table)[1][1] == "0"
    assert table.records[0]["worst_depth"] == 0.0


def test_cost_has_speed_tokens_and_what_else_is_known() -> None:
    cells = [cell("rope", hits(5), length=1024), cell("yarn", hits(5), length=512)]
    [table] = cost_tables(cells)
    assert table.header == ("model", "length", "n", "examples/s", "wall time (s)", "prompt tokens", "new tokens")
    assert shown(table) == [
        ["yarn-tiny", "512 (1x)", "100", "50", "2", "12,345", "678"],
        ["rope-tiny", "1,024 (2x)", "100", "50", "2", "12,345", "678"],
    ]
    assert "device: cpu" in table.notes
    embedded = {"spec": to_builtins(cells[0].result.spec) | {"weights": {"embedded": "drope-tiny"}}}
    more = {"engine": {"device": "gpu"}, "peak_memory": 3 * 2**30, "seconds": 0} | embedded
    [table] = cost_tables([*cells, cell("drope", hits(5), details=more)])
    assert table.header[-3:] == ("peak memory (GiB)", "training tokens (M)", "device")
    row = next(row for row in shown(table) if row[0] == "drope-tiny")
    # What the model card of the checkpoint that this project ships says.
    assert row[3:] == ["", "0", "12,345", "678", "3", "393", "gpu"]
    assert notes_with(table, "compare only rows of one device")


def test_all_is_every_kind() -> None:
    cells = [cell("rope", hits(50), task=task) for task in ("niah", "vt")]
    each = [table.title for kind in TABLE_KINDS for table in report_tables(cells, kind)]
    assert [table.title for table in report_tables(cells, "all")] == each
    assert [title.partition(":")[0] for title in each] == [
        "niah", "vt", "1,024 tokens (2x)", "niah, summary", "vt, summary", "niah, cost", "vt, cost",
    ]  # fmt: skip


# -- gaps in the provenance ---------------------------------------------------------------------------------------

DIRTY = {"environment": {"git": {"commit": "0123456789abcdef", "dirty": True}}}
LOCAL = {"weights": {"path": "out/mine"}, "model": {"name": "mine", "original_length": 512}}
UNCOMMITTED, KNOWN_BY_DIGEST = (
    "measured by code with uncommitted changes", "weights out of a local folder, known by their digest alone"
)  # fmt: skip


def caveated() -> list[CellSummary]:
    """Two methods with a gap each, and one without, at the training context and beyond."""
    depths = [round(10.0 * (place % 11), 2) for place in range(100)]
    points = [ScoredExample(score, 6_000, 3_000) for score in hits(40)]
    return [
        cell(name, hits(count), length, task, details=details, spec=spec, depths=depths, points=points)
        for name, count, details, spec in (("rope", 80, {}, None), ("yarn", 60, DIRTY, None), ("pi", 40, {}, LOCAL))
        for length in (512, 1024)
        for task in ("niah", "multi_news")
    ]


@pytest.mark.parametrize("form", ["md", "latex", "html"])
@pytest.mark.parametrize("kind", ["lengths", "tasks", "summary", "cost"])
def test_every_table_names_the_cells_with_gaps_in_their_provenance(kind: str, form: str) -> None:
    tables = report_tables(caveated(), kind)
    assert tables
    for table in tables:
        shown_text = FORMATS[form]([table])
        assert f"{UNCOMMITTED}: yarn-tiny" in shown_text, table.title
        assert f"{KNOWN_BY_DIGEST}: pi-tiny" in shown_text, table.title


@pytest.mark.parametrize("kind", ["lengths", "tasks", "summary", "cost", "all"])
def test_gaps_in_the_provenance_are_a_column_of_csv(kind: str) -> None:
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](report_tables(caveated(), kind)))))
    gaps = {"rope-tiny": "", "yarn-tiny": "uncommitted code", "pi-tiny": "local weights"}
    assert rows
    assert all(row["caveats"] == gaps[row["model"]] for row in rows)


def test_gaps_that_all_numbers_have_are_said_once() -> None:
    cells = [cell(name, hits(9, 20), details=DIRTY, spec=LOCAL) for name in ("rope", "yarn")]
    [table] = length_tables(cells)
    assert notes_with(table, UNCOMMITTED) == [f"{UNCOMMITTED}: all numbers"]
    assert notes_with(table, KNOWN_BY_DIGEST) == [f"{KNOWN_BY_DIGEST}: all numbers"]
    assert cells[0].caveats == ("uncommitted code", "local weights")


def test_gaps_of_both_models_of_a_comparison() -> None:
    comparison = compare(caveated(), "yarn-tiny", "pi-tiny")
    first, _ = comparison_tables([comparison])
    assert f"{UNCOMMITTED}: yarn-tiny" in first.notes
    assert f"{KNOWN_BY_DIGEST}: pi-tiny" in first.notes
    assert {(row["caveats_a"], row["caveats_b"]) for row in exact_table([comparison]).records} == {
        ("uncommitted code", "local weights")
    }


@pytest.mark.parametrize("environment", [None, {}, {"git": None}, {"git": "x"}, {"git": {"dirty": False}}])
def test_no_gap_is_made_up(environment: object) -> None:
    assert cell("rope", hits(3, 9), details={"environment": environment}).caveats == ()
