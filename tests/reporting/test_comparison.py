"""Paired comparison end to end: a small store, the command line, and its errors."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.result_stores import result_of, spec_of
from helpers.table_cells import cell as table_cell

import longctx_bench
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import NATURAL, Cell, SampleRecord
from longctx_bench.reporting.comparison import compare, paired_contributions
from longctx_bench.reporting.results import read_cells
from longctx_bench.reporting.stats.paired_tests import MCNEMAR, PERMUTATION, PERMUTATION_EXACT, paired_comparison
from longctx_bench.reporting.tables.comparison_tables import comparison_tables
from longctx_bench.store.run_store import ResultStore

Call = Callable[..., tuple[int, str, str]]
YARN = [1.0] * 30 + [0.0] * 2
PI = [1.0] * 12 + [0.0] * 18 + [1.0] * 2


def add(
    folder: Path,
    method: str,
    scores: Sequence[float],
    task: str = "niah",
    length: int = 1024,
    metric: str = "string_match_all",
    seed: int = 42,
    model: str = "tiny",
    prompts: Sequence[int] | None = None,
    finish: bool = True,
) -> None:
    """Write one cell; example i of a task, length and seed is the same for all methods unless ``prompts`` says else."""
    cell = Cell(model, method, task, length)
    described: dict[str, Any] = {
        "model": {"name": model},
        "method": {"name": method},
        "task": {"name": task, "metric": metric, "params": {}},
        "seed": seed,
        "dtype": "float32",
        "engine": "echo",
        "chat_template": False,
    }
    spec = spec_of(cell, described)
    store = ResultStore(folder)
    store.start(cell, spec)
    numbers = range(len(scores)) if prompts is None else prompts
    records = [
        {
            "id": f"{place:06d}",
            "hash": hashlib.sha256(f"{task} {length} {seed} {number}".encode()).hexdigest()[:32],
            "score": score,
            "metric": metric,
            "text": "",
            "references": [],
            "depths": [50.0],
            "prompt_tokens": 100,
            "new_tokens": 5,
            "finish_reason": "eos",
        }
        for place, (number, score) in enumerate(zip(numbers, scores, strict=True))
    ]
    store.append(cell, [SampleRecord(record, 0.1) for record in records])
    if finish:
        result = result_of(
            cell, spec, metric=metric, score=sum(scores) / len(scores), n=len(scores), factor=2.0,
            engine={"engine": "echo", "device": "cpu", "dtype": "float32"},
        )  # fmt: skip
        store.finish(cell, result)


def comparison(folder: Path) -> Any:
    return compare(read_cells(folder).finished, "yarn-tiny", "pi-tiny")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two methods on rates, graded scores and losses; a third that nobody asks for."""
    for length in (512, 1024):
        add(tmp_path, "yarn", YARN, length=length)
        add(tmp_path, "pi", YARN if length == 512 else PI, length=length)
    add(tmp_path, "yarn", [0.2 + 0.02 * i for i in range(30)], "qmsum", metric="longbench_rouge_l")
    add(tmp_path, "pi", [0.1 + 0.02 * i for i in range(30)], "qmsum", metric="longbench_rouge_l")
    add(tmp_path, "yarn", [2.5 + 0.1 * i for i in range(8)], "perplexity_last", metric="token_loss")
    add(tmp_path, "pi", [3.0 + 0.12 * i for i in range(8)], "perplexity_last", metric="token_loss")
    add(tmp_path, "ntk", PI)
    return tmp_path


def test_cells_are_compared_by_the_test_that_fits(results: Path) -> None:
    found = comparison(results)
    rows = {(cell.task, cell.length): cell for cell in found.cells}
    assert list(rows) == [("niah", 512), ("niah", 1024), ("perplexity_last", 1024), ("qmsum", 1024)]
    assert found.refused == ()
    assert [rows[key].result.test for key in rows] == [MCNEMAR, MCNEMAR, PERMUTATION_EXACT, PERMUTATION]
    assert rows["niah", 1024].result == paired_comparison(YARN, PI)
    assert [rows[key].scale for key in rows] == [1, 2, 2, 2]
    assert (rows["niah", 1024].result.wins, rows["niah", 1024].result.losses) == (18, 2)


def test_holm_corrects_over_the_whole_table(results: Path) -> None:
    rows = comparison(results).cells
    p = [row.result.p for row in rows]
    # In this order: graded 0.0001, rates 0.0004, losses 2 / 2**8, and 1.
    assert [row.p_holm for row in rows] == pytest.approx([1, 3 * p[1], 2 * p[2], 4 * p[3]])
    assert p[2] == 2 / 2**8
    assert [row.winner for row in rows] == [0, 1, 1, 1]


def test_the_lower_loss_wins(results: Path) -> None:
    loss = comparison(results).cells[2]
    assert (loss.result.wins, loss.result.ties, loss.result.losses) == (8, 0, 0)
    assert loss.result.difference == pytest.approx(-0.57)
    assert loss.winner == 1
    mirrored = compare(read_cells(results).finished, "pi-tiny", "yarn-tiny").cells[2]
    assert (mirrored.result.wins, mirrored.result.losses, mirrored.winner) == (0, 8, -1)
    assert mirrored.result.difference == pytest.approx(0.57)


def test_the_terminal_shows_rows_totals_and_directions(results: Path, call: Call, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = call("compare", "yarn-tiny", "pi-tiny", results)
    assert (code, err) == (0, "")
    row = next(line for line in out.splitlines() if "niah" in line and "1,024" in line)
    cells = [cell.strip() for cell in row.strip("│┃ ").split("│")]
    assert cells[:6] == ["niah", "1,024", "2x", "32", "94", "44"]
    assert cells[6].startswith("+50 [+2")
    assert cells[7:] == ["<0.001", "0.001", "18/12/2", "McNemar, exact"]
    assert "perplexity_last: scores in nats a token, lower is better" in out
    assert "niah, qmsum: scores in %, higher is better" in out
    total = next(line for line in out.splitlines() if "niah" in line and "18/44/2" in line)
    assert [cell.strip() for cell in total.strip("│ ").split("│")] == ["niah", "2", "1", "1", "0", "18/44/2"]


def test_csv_is_exact(results: Path, call: Call, tmp_path: Path) -> None:
    code, out, _ = call("compare", "yarn-tiny", "pi-tiny", results, "--format", "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["task"] for row in rows] == ["niah", "niah", "perplexity_last", "qmsum"]
    expected = paired_comparison(YARN, PI)
    found = rows[1]
    assert [float(found[key]) for key in ("score_a", "score_b", "difference", "low", "high", "p")] == [
        expected.mean_a, expected.mean_b, expected.difference, expected.low, expected.high, expected.p
    ]  # fmt: skip
    assert (found["length"], found["scale"], found["wins"], found["ties"], found["losses"]) == (
        "1024", "2.0", "18", "12", "2"
    )  # fmt: skip
    assert rows[2]["higher_is_better"] == "false"
    path = tmp_path / "out" / "table.csv"
    assert call("compare", "yarn-tiny", "pi-tiny", results, "--out", path)[:2] == (0, f"wrote {path}\n")
    assert path.read_text(encoding="utf-8") == out


@pytest.mark.parametrize(
    ("ending", "what"), [(".md", "| niah | 1,024 |"), (".tex", "\\begin{tabular}"), (".html", "<table")]
)
def test_other_formats_are_written(results: Path, call: Call, tmp_path: Path, ending: str, what: str) -> None:
    path = tmp_path / f"table{ending}"
    assert call("compare", "yarn-tiny", "pi-tiny", results, "--out", path)[0] == 0
    assert what in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--tasks", "niah"), ["niah 512", "niah 1024"]),
        (("--scale", "1x"), ["niah 512"]),
        (("--tasks", "niah,qmsum", "--length", "1k"), ["niah 1024", "qmsum 1024"]),
    ],
)
def test_filters(results: Path, call: Call, options: tuple[str, ...], expected: list[str]) -> None:
    code, out, err = call("compare", "yarn-tiny", "pi-tiny", results, "--format", "csv", *options)
    assert (code, err) == (0, "")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [f"{row['task']} {row['length']}" for row in rows] == expected
    if len(rows) == 1:
        assert rows[0]["p_holm"] == rows[0]["p"]


def test_several_models_are_compared_with_one(results: Path, call: Call) -> None:
    code, out, err = call("compare", "yarn-tiny,ntk-tiny", "pi-tiny", results, "--tasks", "niah", "--format", "md")
    assert code == 0
    assert err == "left out: ntk-tiny: niah at 512: measured for pi-tiny only\n"
    title, rows = out.split("\n\n")[:2]
    assert title == (
        "**niah: string_match_all, difference from pi-tiny in points [95 % interval], higher is better, n = 32 a cell**"
    )
    assert [row.split(" | ")[0] for row in rows.splitlines()[2:]] == ["| yarn-tiny", "| ntk-tiny"]
    assert "| 512 (1x) | 1,024 (2x) |" in rows
    assert r"\* |" in rows.splitlines()[2]
    assert rows.splitlines()[3].startswith("| ntk-tiny |  | 0 [")
    assert "corrected for the 3 cells of this table" in out
    [note] = comparison(results).notes
    assert f"*{note}*" in out


def test_all_others_are_compared_and_their_p_values_corrected_by_task(results: Path, call: Call) -> None:
    code, out, _ = call("compare", "all", "pi-tiny", results, "--format", "csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["a"], row["task"]) for row in rows] == [
        ("ntk-tiny", "niah"),
        ("yarn-tiny", "niah"), ("yarn-tiny", "niah"), ("yarn-tiny", "perplexity_last"), ("yarn-tiny", "qmsum"),
    ]  # fmt: skip
    needles = [row for row in rows if row["task"] == "niah"]
    smallest = min(needles, key=lambda row: float(row["p"]))
    assert float(smallest["p_holm"]) == pytest.approx(3 * float(smallest["p"]))
    assert all(row["p_holm"] == row["p"] for row in rows if row not in needles)
    same = longctx_bench.compare("all", "pi-tiny", results)
    assert same["difference"].tolist() == [float(row["difference"]) for row in rows]
    both = longctx_bench.compare(["ntk-tiny", "yarn-tiny"], "pi-tiny", results)
    assert both["p_holm"].tolist() == same["p_holm"].tolist()


def test_one_of_several_that_is_unknown_is_a_mistake_all_leaves_out_what_cannot_be_compared(
    results: Path, call: Call
) -> None:
    code, out, err = call("compare", "yarn-tiny,qqqqqqq", "pi-tiny", results)
    assert (code, out) == (2, "")
    assert "no finished cell of 'qqqqqqq'" in err
    code, out, _ = call("compare", "all", "pi-tiny", results, "--tasks", "qmsum", "--format", "csv")
    assert code == 0
    assert [row["a"] for row in csv.DictReader(io.StringIO(out))] == ["yarn-tiny"]
    assert call("compare", "all", "qqqqqqq", results)[0] == 2
    assert call("compare", ",", "pi-tiny", results)[0] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("yarn-tny", "pi-tiny"), "no finished cell of 'yarn-tny'; did you mean 'yarn-tiny'?"),
        (("yarn-tiny", "qqqqqqq"), "no finished cell of 'qqqqqqq'; known: ntk-tiny, pi-tiny, yarn-tiny"),
        (("yarn-tiny", "yarn-tiny"), "'yarn-tiny' cannot be compared with itself"),
        (("yarn-tiny", "pi-tiny", "--tasks", "niha"), "--tasks niha: not measured for yarn-tiny; did you mean 'niah'?"),
        (("ntk-tiny", "pi-tiny", "--tasks", "qmsum"), "--tasks qmsum: not measured for ntk-tiny; known: niah"),
        (("ntk-tiny", "pi-tiny", "--scale", "8x"), "ntk-tiny: no finished cell at that --scale or --length; measured"),
        (("yarn-tiny", "pi-tiny", "--scale", "x8"), "--scale x8"),
    ],
)
def test_mistakes_are_one_line(results: Path, call: Call, arguments: tuple[str, ...], message: str) -> None:
    first, second, *options = arguments
    code, out, err = call("compare", first, second, results, *options)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_the_examples_that_pair_are_matched_by_hash_not_by_place(tmp_path: Path) -> None:
    add(tmp_path, "yarn", [1, 0, 1, 0.0], prompts=[0, 1, 2, 3])
    add(tmp_path, "pi", [0, 0, 1, 1.0], prompts=[3, 2, 1, 0])
    cells = {summary.variant: summary for summary in read_cells(tmp_path).finished}
    left, right = paired_contributions(cells["yarn-tiny"], cells["pi-tiny"])
    assert (left.tolist(), right.tolist()) == ([1, 0, 1, 0], [1, 1, 0, 0])
    assert comparison(tmp_path).refused == ()


def test_the_same_prompt_twice_pairs_once_each(tmp_path: Path) -> None:
    add(tmp_path, "yarn", [1, 0, 1.0], prompts=[7, 7, 8])
    add(tmp_path, "pi", [0, 1.0], prompts=[8, 7])
    found = comparison(tmp_path)
    # The first 7 of yarn with the only one of pi; the second has no counterpart.
    assert (found.cells[0].result.n, found.cells[0].result.mean_a, found.cells[0].result.mean_b) == (2, 1, 0.5)
    assert "1 of 3 of yarn-tiny and 0 of 2 of pi-tiny" in found.refused[0]


def test_the_same_prompt_with_other_tokens_scored_is_another_example() -> None:
    kind = {"metric": "token_loss", "task": "perplexity_last"}
    short = table_cell("rope", [3.0, 2.0, 4.0], scored=[256] * 3, **kind)
    long = table_cell("yarn", [3.0, 2.0, 4.0], scored=[1024, 1024, 256], **kind)
    left, right = paired_contributions(short, long)
    assert (left.tolist(), right.tolist()) == ([4.0], [4.0])


def test_a_score_that_is_no_number_is_not_compared() -> None:
    kind = {"metric": "token_loss", "task": "perplexity_last"}
    broken = table_cell("rope", [float("nan"), 2.0, 4.0], **kind)
    with pytest.raises(UserError, match="1 of 3 pairs .*not finite"):
        compare([broken, table_cell("yarn", [3.0, 2.0, 4.0], **kind)], "rope-tiny", "yarn-tiny")


def test_what_differs_besides_the_method_is_noted() -> None:
    a, b = table_cell("rope", [1.0, 0.0]), table_cell("yarn", [1.0, 1.0], spec={"dtype": "float32"})
    (notes,) = {compare([a, b], "rope-tiny", "yarn-tiny").notes}
    assert any("dtype" in note for note in notes)


def test_unpaired_examples_are_refused_and_named(results: Path, call: Call) -> None:
    add(results, "yarn", [1.0] * 20, length=2048)
    add(results, "pi", [0.0] * 5, length=2048)
    add(results, "yarn", [1.0] * 6, length=4096, seed=42)
    add(results, "pi", [0.0] * 6, length=4096, seed=43)
    add(results, "yarn", [1.0] * 3, "vt")
    code, out, err = call("compare", "yarn-tiny", "pi-tiny", results, "--format", "csv")
    rows = {(row["task"], row["length"]): row for row in csv.DictReader(io.StringIO(out))}
    assert code == 0
    # The five that both were given; the fifteen others enter no mean.
    assert (rows["niah", "2048"]["n"], rows["niah", "2048"]["score_a"]) == ("5", "1.0")
    assert ("niah", "4096") not in rows
    assert ("niah", "1024") in rows
    lines = err.splitlines()
    assert lines == [
        "left out: niah at 2048: examples without an identical counterpart: 15 of 20 of yarn-tiny and 0 of 5 of "
        "pi-tiny: different --limit (20 and 5 examples); left out, 5 pairs compared",
        "left out: niah at 4096: examples without an identical counterpart: 6 of 6 of yarn-tiny and 6 of 6 of "
        "pi-tiny: different seeds (42 and 43); not compared",
        "left out: vt at 1024: measured for yarn-tiny only",
    ]


def test_nothing_to_compare_is_a_mistake(tmp_path: Path, call: Call) -> None:
    add(tmp_path, "yarn", [1.0] * 4)
    add(tmp_path, "pi", [1.0] * 4, seed=7)
    code, out, err = call("compare", "yarn-tiny", "pi-tiny", tmp_path)
    assert (code, out) == (2, "")
    assert "nothing to compare: niah at 1024: examples without an identical counterpart" in err
    assert "different seeds (42 and 7)" in err
    add(tmp_path, "ntk", [1.0] * 4, "vt")
    code, _, err = call("compare", "yarn-tiny", "ntk-tiny", tmp_path)
    assert code == 2
    assert "yarn-tiny and ntk-tiny share no task at one length; run both with the same --tasks" in err


def test_other_bases_and_other_metrics_say_so(tmp_path: Path) -> None:
    add(tmp_path, "yarn", [1.0] * 4)
    add(tmp_path, "yarn", [1.0] * 4, model="small", prompts=[4, 5, 6, 7])
    with pytest.raises(UserError, match=r"different base models \(tiny and small\), perhaps with different tokenizers"):
        compare(read_cells(tmp_path).finished, "yarn-tiny", "yarn-small")
    add(tmp_path, "pi", [1.0] * 4, metric="string_match_part")
    with pytest.raises(UserError, match="yarn-tiny is scored by string_match_all, pi-tiny by string_match_part"):
        comparison(tmp_path)


def test_whole_documents_have_no_scale(tmp_path: Path) -> None:
    for method in ("yarn", "pi"):
        add(tmp_path, method, [0.5] * 4, "qmsum", NATURAL, "longbench_rouge_l")
    found = comparison(tmp_path)
    assert found.cells[0].scale is None
    assert comparison_tables([found])[0].rows[0][1:3] == ("natural", "")


def test_cells_that_are_not_finished_are_named(results: Path, call: Call) -> None:
    add(results, "yarn", YARN, length=8192, finish=False)
    add(results, "ntk", YARN, length=8192, finish=False)
    code, _, err = call("compare", "yarn-tiny", "pi-tiny", results)
    assert code == 0
    assert err.startswith("missing: tiny/yarn/niah/8192: not finished")
    assert err.count("\n") == 1


def test_too_few_examples_to_show_anything_are_said(tmp_path: Path) -> None:
    for method in ("yarn", "pi"):
        add(tmp_path, method, [1.0] * 4)
    [table, _] = comparison_tables([comparison(tmp_path)])
    assert any("n = 4 is too small" in note for note in table.notes)
