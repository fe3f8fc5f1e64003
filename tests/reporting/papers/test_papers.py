"""Paper tables: published and measured numbers in separate columns, empty where not measured."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from helpers.document_blocks import blocks
from helpers.reference_results import reference
from helpers.table_cells import cell, hits

from longctx_bench.core.errors import UserError
from longctx_bench.core.types import NATURAL
from longctx_bench.metrics.length_buckets import ScoredExample
from longctx_bench.registry import Registry
from longctx_bench.reporting.figures.registry import FIGURE_KINDS
from longctx_bench.reporting.papers.paper_spec import Paper, read_paper
from longctx_bench.reporting.papers.paper_tables import paper_tables
from longctx_bench.reporting.tables.base import Table

DEMO = reference("demo")


def column(table: Table, head: str) -> dict[str, str]:
    place = table.header.index(head)
    return {str(row[0]): str(row[place]) for row in table.rows}


@pytest.fixture
def paper() -> Paper:
    return read_paper("drope")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Write a small paper of one's own."""
    (tmp_path / "mine.csv").write_text(
        "table,base,method,task,length,value\n"
        "1,big,rope,niah,2x,1.50\n1,big,drope,niah,2x,70.0\n1,big,drope,niah,4x,50\n"
        "1,big,rope,average,natural,10\n1,big,drope,average,natural,60\n2,small,drope,musique,2-4x,7\n"
    )
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: Mine\ntitle: Mine, a journal\nnumbers: mine.csv\nbases: {big: Big-7B, small: Small-1B}\n"
        "tables: {1: Needles, 2: Questions}\nfigures:\n  3: {kind: bars, title: Bars, scale: 2}\n"
        "  4: {kind: factors, title: Factors}\n"
    )
    return path


def test_every_table_of_the_drope_paper_is_there_with_its_numbers(paper: Paper) -> None:
    made = paper_tables(paper, [])
    assert list(made) == [1, 2, 3, 5, 7, 8, 9, 10]
    shown = sum(
        bool(str(entry)) for tables in made.values() for table in tables for row in table.rows for entry in row[1:]
    )
    assert shown == sum(number.table in made for number in paper.numbers)
    needles = column(made[10][0], "niah 8x, SmolLM-360M (published)")
    assert needles["drope"] == "52.2"
    assert needles["longrope2"] == "16.45"
    assert [table.title.split(":")[0] for table in made[3]] == [
        "DroPE table 3, SmolLM-1.7B",
        "DroPE table 3, Llama2-7B",
    ]
    assert all("nothing of this table was measured yet" in table.notes for tables in made.values() for table in tables)


def test_what_the_paper_names_is_ours_or_declared(paper: Paper) -> None:
    registry = Registry()
    layout = paper.spec
    tasks = {
        layout.measured_as.get(number.task, number.task) for number in paper.numbers if number.table in layout.tables
    }
    tasks |= {task for parts in layout.averages.values() for task in parts}
    tasks |= {task for figure in layout.figures.values() for task in figure.tasks}
    for task in tasks - {"average", *layout.averages}:
        assert registry.select_tasks(task, None), task
    for figure in layout.figures.values():
        assert figure.kind in FIGURE_KINDS
        assert set(figure.methods) <= set(registry.methods)


@pytest.mark.parametrize(
    ("name", "counts", "head", "shown"),
    [
        ("string", {1: 48}, "niah_two_of_four 2k, TinyLlama-1.1B-3T (published)", {"rope": "69.8", "string": "97.2"}),
        (
            "lceg",
            {2: 118, 3: 51, 5: 39, 6: 37},
            "ruler 4k, Llama-2-7B (published)",
            {"rope": "80.94", "yarn-32k": "79.12"},
        ),
        ("jet-long", {1: 18}, "ruler 4k-128k, Qwen3-1.7B-Base (published)", {"yarn@4x": "52.99", "jet-long": "73.93"}),
    ],
)
def test_the_tables_of_the_other_papers(name: str, counts: dict[int, int], head: str, shown: dict[str, str]) -> None:
    paper = read_paper(name)
    made = paper_tables(paper, [])
    assert {
        table: len(numbers) for table in made if (numbers := [n for n in paper.numbers if n.table == table])
    } == counts
    (found,) = (table for tables in made.values() for table in tables if head in table.header)
    assert shown.items() <= column(found, head).items()
    for tables in made.values():
        for table in tables:
            assert any(note.startswith("published: ") and "arXiv" in note for note in table.notes)
            assert any(note.startswith("here: ") for note in table.notes)


def test_strings_numbers_have_the_averages_that_the_paper_prints() -> None:
    """A mistyped number would show; the cell that is left out is the one that its row cannot tell."""
    printed = {"rerope": 67.3, "ntk": 67.6, "rope": 67.8, "yarn": 70.5, "dca": 73.1, "string": 85.7}
    numbers = read_paper("string").numbers
    for method, average in printed.items():
        values = [float(number.value) for number in numbers if number.method == method]
        assert len(values) == 7
        assert sum(values) / 7 == pytest.approx(average, abs=0.06), method
    assert [n.base for n in numbers if n.method == "self-extend"].count("lwm-7b") == 0


def test_what_lceg_prints_in_two_ways_is_marked() -> None:
    (table,) = paper_tables(read_paper("lceg"), [])[3]
    assert any("swapped" in note and "50.18" in note and "79.12" in note for note in table.notes)
    assert "lower is better" in paper_tables(read_paper("lceg"), [])[2][0].title


def test_lengths_in_tokens_and_means_over_lengths(own: Path) -> None:
    with (own.parent / "mine.csv").open("a") as file:
        file.write("2,small,drope,niah,1k,8\n2,small,drope,niah,2k,9\n2,small,drope,both,1k-2k,10\n")
    text = own.read_text() + "lengths: {1k-2k: [1k, 2k]}\naverages: {both: [niah]}\nnotes: {2: [Look here]}\n"
    own.write_text(text)
    cells = [cell("drope", hits(80)), cell("drope", hits(40), 2048), cell("drope", hits(10), 1024, model="other")]
    (table,) = paper_tables(read_paper(str(own)), cells)[2]
    assert column(table, "niah 1k, tiny (measured)")["drope"].startswith("80 ")
    assert column(table, "niah 2k, tiny (measured)")["drope"].startswith("40 ")
    assert column(table, "both 1k-2k, tiny (measured)")["drope"] == "60.0"
    assert column(table, "both 1k-2k, other (measured)")["drope"] == ""
    assert "other: both needs 2 cells, 1 were measured" in table.notes
    assert table.notes[0] == "Look here"
    own.write_text(text.replace("[1k, 2k]", "[1k, long]"))
    with pytest.raises(UserError, match="lengths: 1k-2k: long: expected lengths such as 2x or 8k"):
        read_paper(str(own))
    own.write_text(text.replace("notes: {2", "notes: {3"))
    with pytest.raises(UserError, match="names table 3, which 'tables' does not"):
        read_paper(str(own))


def test_a_perplexity_stands_beside_the_exponential_of_a_loss(own: Path) -> None:
    own.write_text(own.read_text() + "perplexity: [1]\n")
    cells = [cell("drope", [2.0, 3.0], metric="token_loss"), cell("rope", hits(2))]
    (table,) = paper_tables(read_paper(str(own)), cells)[1]
    assert table.title.endswith("perplexity, lower is better")
    shown = column(table, "niah 2x, tiny (measured)")
    assert float(shown["drope"].split()[0]) == pytest.approx(12.18, abs=0.1)
    assert shown["rope"] == "", "a success rate has none"
    (line,) = (r for r in table.records if r["source"] == "measured" and r["task"] == "niah")
    assert line["value"] == pytest.approx(12.1825, abs=1e-3)


def test_another_base_stands_under_its_own_name(own: Path) -> None:
    cells = [cell("drope", hits(77)), cell("drope", hits(9), 2048), cell("rope", hits(0), model="big")]
    (table,) = paper_tables(read_paper(str(own)), cells)[1]
    assert table.header == (
        "method",
        *("niah 2x, Big-7B (published)", "niah 2x, big (measured)", "niah 2x, tiny (measured)"),
        *("niah 4x, Big-7B (published)", "niah 4x, big (measured)", "niah 4x, tiny (measured)"),
        *("average natural, Big-7B (published)", "average natural, big (measured)", "average natural, tiny (measured)"),
    )
    assert column(table, "niah 2x, Big-7B (published)") == {"rope": "1.50", "drope": "70.0"}
    assert column(table, "niah 2x, tiny (measured)") == {"rope": "", "drope": "77 [68, 84]"}
    assert column(table, "niah 2x, big (measured)")["rope"].startswith("0.0 [0.0,")
    assert column(table, "niah 4x, tiny (measured)")["drope"].startswith("9 ")
    (other,) = paper_tables(read_paper(str(own)), cells)[2]
    assert not any("big" in head for head in other.header)


def test_an_average_is_shown_only_where_all_of_it_was_measured(own: Path) -> None:
    cells = [cell("drope", hits(80)), cell("rope", hits(2)), cell("drope", hits(20), 2048)]
    (table,) = paper_tables(read_paper(str(own)), cells)[1]
    assert column(table, "average natural, tiny (measured)") == {"rope": "", "drope": "50.0"}
    lines = [record for record in table.records if record["task"] == "average" and record["source"] == "measured"]
    assert [(line["method"], line["value"], line["measured_on"]) for line in lines] == [("drope", 50.0, "tiny")]
    assert any("n = 100 a cell" in note for note in table.notes)
    (partly,) = paper_tables(read_paper(str(own)), cells[:2])[1]
    assert column(partly, "average natural, tiny (measured)") == {"rope": "", "drope": ""}
    assert "tiny: average needs 2 tasks, 1 were measured" in partly.notes


def test_a_loss_is_no_per_cent(own: Path) -> None:
    cells = [cell("drope", [2.8, 3.0], metric="token_loss"), cell("rope", hits(2))]
    (table,) = paper_tables(read_paper(str(own)), cells)[1]
    assert column(table, "niah 2x, tiny (measured)")["drope"] == ""
    assert {record["method"] for record in table.records if record["source"] == "measured"} == {"rope"}


def test_buckets_come_out_of_whole_documents(own: Path) -> None:
    points = [ScoredExample(1.0, 1200, None), ScoredExample(0.0, 1300, None), ScoredExample(1.0, 100, None)]
    cells = [cell("drope", [1.0, 0.0, 1.0], NATURAL, "musique", metric="longbench_qa_f1", points=points)]
    (table,) = paper_tables(read_paper(str(own)), cells)[2]
    shown = column(table, "musique 2-4x, tiny (measured)")["drope"]
    assert shown.startswith("50 [")
    assert shown.endswith("(2)")


def test_models_are_chosen_by_name(own: Path) -> None:
    cells = [cell("drope", hits(77)), cell("drope", hits(50), model="other", context=512)]
    (table,) = paper_tables(read_paper(str(own)), cells, ["other"])[1]
    assert "niah 2x, other (measured)" in table.header
    assert not any("tiny" in head for head in table.header)
    with pytest.raises(UserError, match="--base tinny: .*tiny"):
        paper_tables(read_paper(str(own)), cells, ["tinny"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,big,rope,niah,twice,1", "line 8: length 'twice'"),
        ("1,big,rope,niah,2x,many", "line 8: 'table' and 'value' must be numbers"),
        ("1,big,rope,niah,2x,nan", "line 8: 'table' and 'value' must be numbers"),
        ("1,big,rope,niah,2x,2", "line 8: duplicates .* line 2"),
        ("1,big,rope,niah,2x", "line 8: must have 6 columns"),
        ("1,huge,rope,niah,2x,1", "'bases' .*'huge'"),
    ],
)
def test_a_wrong_line_is_named(own: Path, line: str, message: str) -> None:
    with (own.parent / "mine.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        read_paper(str(own))


def test_wrong_papers_get_one_line(own: Path, tmp_path: Path, call: Any) -> None:
    with pytest.raises(UserError, match="--paper dorpe: .*did you mean 'drope'"):
        read_paper("dorpe")
    own.write_text(own.read_text().replace("kind: bars", "kind: bras"))
    code, _, error = call("figures", "--paper", own, DEMO, "--out", tmp_path / "x")
    assert code == 2
    assert error.endswith("figure 3: kind 'bras' is unknown; did you mean 'bars'?\n")


def test_the_command_writes_tables_and_figures_and_says_what_is_missing(own: Path, tmp_path: Path, call: Any) -> None:
    out = tmp_path / "paper"
    code, _, error = call("figures", "--paper", own, DEMO, "--format", "svg", "--out", out)
    assert code == 0
    assert error.startswith("left out: figure-4, Factors:")
    assert sorted(path.name for path in out.iterdir()) == [
        "figure-3.svg", "table-1.tex", "table-2.tex", "tables.csv", "tables.md",
    ]  # fmt: skip
    lines = list(csv.DictReader((out / "tables.csv").open()))
    assert [line["source"] for line in lines].count("published") == 6
    assert lines[0] | {"value": "1.5", "task": "niah", "source": "published"} == lines[0]
    assert {line["measured_on"] for line in lines if line["source"] == "measured"} == {"tiny"}
    (measured,) = (line for line in lines if line["measured_on"] and line["length"] == "4x")
    assert (measured["base"], measured["method"], measured["n"]) == ("big", "drope", "22")
    assert float(measured["low"]) <= float(measured["value"]) <= float(measured["high"])
    assert "| drope | 70.0 |" in (out / "tables.md").read_text()
    assert r"\toprule" in (out / "table-1.tex").read_text()


@pytest.mark.parametrize(
    ("text", "wrong", "right"),
    [("tables:", "tabels:", "tables"), ("name:", "nmae:", "name"), ("kind: bars", "knid: bars", "kind")],
)
def test_a_misspelt_key_of_a_papers_yaml_gets_a_suggestion(text: str, wrong: str, right: str, tmp_path: Path) -> None:
    published = {block.file: block.text for block in blocks("results/published/README.md") if block.file}
    for name, content in published.items():
        assert name is not None
        (tmp_path / name).write_text(content)
    assert read_paper(str(tmp_path / "mine.yaml")).spec.figures[1].kind == "bars"
    (tmp_path / "mine.yaml").write_text(published["mine.yaml"].replace(text, wrong, 1))
    with pytest.raises(UserError, match=f"unknown key '.*{wrong.split(':', maxsplit=1)[0]}'; did you mean '{right}'"):
        read_paper(str(tmp_path / "mine.yaml"))
