"""Reading a run's folder: valid cells as stored, damaged and unfinished ones in one line each."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.reference_results import reference
from helpers.result_stores import spec_of
from helpers.table_cells import cell

from longctx_bench import run
from longctx_bench.core.errors import UserError
from longctx_bench.core.types import Cell
from longctx_bench.engines.echo import EchoEngine
from longctx_bench.registry import Registry
from longctx_bench.reporting.comparison import compare
from longctx_bench.reporting.results import read_cells, read_store
from longctx_bench.store.bundle import open_store
from longctx_bench.store.run_store import ResultStore

HURT = Path("runs/tiny/rope/niah/512")


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on two tasks, 12 examples a cell; not to be changed."""
    out = tmp_path_factory.mktemp("run")
    essays = out / "essays.txt"
    essays.write_text("We walked on for a while and nobody spoke of it. Then the talk went on! " * 400)
    run(
        f"{tiny_folder},yarn:{tiny_folder}", "niah,niah_multikey", length=[512], limit=12, engine="echo",
        out=out, registry=Registry(local_data={"ruler-essays": essays}),
    )  # fmt: skip
    return out


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """The same run, to be hurt."""
    return shutil.copytree(whole, tmp_path / "copied")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def write_lines(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def change(folder: Path, **values: Any) -> None:
    details = json.loads((folder / "cell.json").read_text()) | values
    (folder / "cell.json").write_text(json.dumps({key: value for key, value in details.items() if value is not None}))


def test_a_cell_is_what_the_store_has(whole: Path) -> None:
    results = read_cells(whole)
    assert [str(s.cell) for s in results.finished] == [
        "rope-tiny/niah/512", "rope-tiny/niah_multikey/512", "yarn-tiny/niah/512", "yarn-tiny/niah_multikey/512",
    ]  # fmt: skip
    assert results.missing == []
    for summary in results.finished:
        records = list(ResultStore(whole).records(summary.cell))
        assert summary.n == len(records) == 12
        assert summary.scores.dtype == np.float64
        assert summary.scores.tolist() == [record["score"] for record in records]
        assert summary.hashes.dtype == np.dtype("S16")
        assert [found.ljust(16, b"\0").hex() for found in summary.hashes.tolist()] == [
            record["hash"] for record in records
        ]
        assert summary.score == pytest.approx(summary.scores.mean())
    niah, multikey, other, _ = results.finished
    assert (niah.hashes == other.hashes).all(), "methods of a base have the same examples"
    assert not (niah.hashes == multikey.hashes).any()
    depths = [record["depths"][0] for record in lines_of(whole / HURT)]
    assert niah.depths.tolist() == depths
    assert sorted(niah.by_depth) == sorted(set(depths))
    at_start = [score for depth, score in zip(depths, niah.scores, strict=True) if depth == depths[0]]
    assert niah.by_depth[depths[0]] == np.mean(at_start)
    assert (len(multikey.depths), multikey.by_depth) == (0, {}), "several needles have no one depth"


def test_lines_out_of_order_and_behind_a_gap(copied: Path) -> None:
    records = lines_of(copied / HURT)
    expected = [record["score"] for record in records]
    shuffled = records[:]
    random.Random(1).shuffle(shuffled)
    write_lines(copied / HURT, shuffled)
    assert read_cells(copied).finished[0].scores.tolist() == expected
    write_lines(copied / HURT, [record for record in shuffled if record["id"] != "000007"])
    change(copied / HURT, n=7)
    found = read_cells(copied).finished[0]
    assert found.scores.tolist() == expected[:7]
    assert len(list(ResultStore(copied).records(found.cell))) == 7


def test_a_score_that_is_not_a_number_is_read(copied: Path) -> None:
    records = lines_of(copied / HURT)
    records[3]["score"] = math.nan
    write_lines(copied / HURT, records)
    change(copied / HURT, score=math.nan)
    results = read_cells(copied)
    assert results.missing == []
    assert np.isnan(results.finished[0].scores).tolist() == [place == 3 for place in range(12)]


def test_the_score_of_losses_stays_the_mean_over_tokens() -> None:
    store = open_store(reference("tiny"))
    losses = [summary for summary in read_store(store).finished if summary.cell.task == "perplexity_last"]
    assert losses
    for summary in losses:
        records = list(store.records(summary.cell))
        weights = [record["scored"] for record in records]
        assert summary.score == pytest.approx(np.average(summary.scores, weights=weights))
        assert (summary.percent, summary.higher_is_better) == (False, False)


def test_windows_that_score_more_tokens_weigh_more_in_mean_interval_and_test() -> None:
    scored, losses = [4095, *[256] * 11], [5.0, *np.linspace(3.0, 3.2, 11)]
    rope = cell("rope", losses, metric="token_loss", scored=scored)
    assert rope.score == pytest.approx(np.average(losses, weights=scored))
    assert rope.contributions.mean() == pytest.approx(rope.score)
    assert rope.low < rope.score < rope.high
    yarn = cell("yarn", [3.0, *np.full(11, 4.0)], metric="token_loss", scored=scored)
    assert rope.scores.mean() < yarn.scores.mean()
    assert rope.score > yarn.score
    found = compare([rope, yarn], "rope-tiny", "yarn-tiny").cells[0].result
    assert found.difference == pytest.approx(rope.score - yarn.score)
    assert cell("pi", [1.0, 2.0], metric="token_loss", scored=[256, 256]).contributions.tolist() == [1.0, 2.0]


def test_a_metric_is_in_per_cent_by_its_name_alone() -> None:
    assert cell("rope", [0.5, 2.0], metric="bits_per_byte").percent is False
    assert cell("rope", [0.5, 0.6], metric="bits_per_byte").percent is False
    assert cell("rope", [0.0, 1.0], metric="acc_norm").percent is True


def test_documents_of_their_own_length_have_points(tmp_path: Path) -> None:
    folder = tmp_path / "runs/tiny/drope/multi_news/natural"
    store = open_store(reference("longbench"))
    shutil.copytree(store.path(Cell("tiny", "drope", "multi_news", 1024)), folder)
    change(folder, cell={"model": "tiny", "method": "drope", "task": "multi_news", "length": 0})
    records = lines_of(folder)
    records[1]["document_tokens"] = 5000  # a method that cut the prompt
    write_lines(folder, records)
    (summary,) = read_cells(tmp_path).finished
    assert [point.score for point in summary.points] == summary.scores.tolist()
    tokens = [record["prompt_tokens"] for record in records]
    assert [point.prompt_tokens for point in summary.points] == [tokens[0], 5000, *tokens[2:]]
    assert [point.words for point in summary.points] == [record["words"] for record in records]


def text_in(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def without_score(folder: Path) -> None:
    records = lines_of(folder)
    del records[4]["score"]
    write_lines(folder, records)


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20]) and None


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "summary is no JSON": (text_in("cell.json", "{"), "cell.json is not valid JSON"),
    "summary is cut": (cut("cell.json"), "cell.json is not valid JSON"),
    "summary is empty": (text_in("cell.json", ""), "cell.json is not valid JSON"),
    "summary is a list": (text_in("cell.json", "[1]"), "cell.json is damaged or another version's"),
    "summary lacks a key": (lambda folder: change(folder, factor=None), "required field `factor`"),
    "summary has a text for a number": (lambda folder: change(folder, score="high"), "got `str` - at `$.score`"),
    "summary of another spec": (lambda folder: change(folder, spec={"task": 1}), "`$.spec"),
    "summary of no context": (lambda folder: change(folder, original_length=0), "`$.original_length`"),
    "summary of another cell": (
        lambda folder: change(folder, cell={"model": "tiny", "method": "pi", "task": "niah", "length": 512}),
        "its cell.json is that of pi-tiny/niah/512",
    ),
    "records are gone": (lambda folder: (folder / "records.jsonl").unlink(), "records.jsonl is missing"),
    "records are a folder": (
        lambda folder: (folder / "records.jsonl").unlink() or (folder / "records.jsonl").mkdir(),
        "records.jsonl cannot be read",
    ),
    "records are empty": (text_in("records.jsonl", ""), "holds 0 whole examples, cell.json says 12"),
    "last line is cut": (cut("records.jsonl"), "records.jsonl: line 12 is not valid JSON"),
    "line is no JSON": (text_in("records.jsonl", "{}\nx\n"), "records.jsonl: line 1 is not a record"),
    "line is no record": (without_score, "records.jsonl: line 5 is not a record"),
    "line is not text": (
        lambda folder: (folder / "records.jsonl").write_bytes(b"\xff\xfe\n"), "records.jsonl: line 1 is not valid JSON"
    ),
    "a record is missing": (
        lambda folder: write_lines(folder, lines_of(folder)[:-1]), "holds 11 whole examples, cell.json says 12"
    ),
    "a record is twice": (
        lambda folder: write_lines(folder, lines_of(folder) + lines_of(folder)[5:6]), "holds 6 whole examples"
    ),
    "a needle has no depth": (
        lambda folder: write_lines(folder, [record | {"depths": []} for record in lines_of(folder)]), "has no depth"
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_cell_is_one_line_and_the_rest_is_shown(
    call: Callable[..., tuple[int, str, str]], copied: Path, how: str
) -> None:
    hurt, message = DAMAGE[how]
    hurt(copied / HURT)
    results = read_cells(copied)
    assert len(results.finished) == 3
    assert results.unfinished == []
    assert results.missing == results.damaged
    (line,) = results.damaged
    assert line.startswith("tiny/rope/niah/512: ")
    assert message in line
    assert line.endswith("; delete its folder and run again")
    code, shown, error = call("report", copied, "--format", "csv")
    assert code == 0
    assert len(shown.splitlines()) == 1 + 3
    assert f"missing: {line}" in error.splitlines()


def test_a_cell_that_was_begun_says_how_far_it_came(copied: Path) -> None:
    (copied / HURT / "cell.json").rename(copied / HURT / "started.json")
    whole_lines = (copied / HURT / "records.jsonl").read_bytes().splitlines(keepends=True)
    (copied / HURT / "records.jsonl").write_bytes(b"".join(whole_lines[:5]) + b'{"id": "0000')
    results = read_cells(copied)
    assert len(results.finished) == 3
    line = "tiny/rope/niah/512: not finished, 5 examples so far; the same run command completes it"
    assert results.missing == results.unfinished == [line]
    for damage in ("{", "[1]"):
        (copied / HURT / "started.json").write_text(damage)
        assert read_cells(copied).missing == [line]
    (copied / HURT / "started.json").unlink()
    assert read_cells(copied).missing == [line], "records alone are a cell too"
    (copied / HURT / "records.jsonl").unlink()
    (copied / HURT / "started.json").write_text("{}")
    assert "0 examples so far" in read_cells(copied).missing[0]


def test_a_run_with_a_failed_example_says_why_until_it_is_completed(
    tiny_folder: Path, tmp_path: Path, essays: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: dict[str, Any] = {
        "length": [512], "engine": "echo", "batch_tokens": 600, "limit": 5, "out": tmp_path,
        "registry": Registry(local_data={"ruler-essays": essays}),
    }  # fmt: skip
    generate, seen = EchoEngine.generate, list[str]()

    def breaks(self: EchoEngine, batch: Any, *rest: Any) -> Any:
        seen.extend(request.example_id for request in batch)
        # The first cell's third example; the second cell's are behind it.
        if len(seen) == 3:
            raise UserError("a prompt of 512 tokens does not fit")
        return generate(self, batch, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(EchoEngine, "generate", breaks)
        with pytest.raises(UserError, match="1 cell failed: "):
            run(f"{tiny_folder},yarn:{tiny_folder}", "niah", **arguments)
    results = read_cells(tmp_path)
    assert [str(summary.cell) for summary in results.finished] == ["yarn-tiny/niah/512"]
    assert results.unfinished == [
        "tiny/rope/niah/512: failed (a prompt of 512 tokens does not fit), 2 examples so far; "
        "the same run command tries it again"
    ]
    run(f"{tiny_folder},yarn:{tiny_folder}", "niah", **arguments)
    assert (len(read_cells(tmp_path).finished), read_cells(tmp_path).missing) == (2, [])


def test_a_failure_is_noted_for_the_same_spec_alone(tmp_path: Path) -> None:
    store, cell = ResultStore(tmp_path), Cell("m", "rope", "niah", 512)
    one, other = (spec_of(cell, {"seed": seed}) for seed in (1, 2))
    store.record_failure(cell, one, "refused before it began")
    assert not store.path(cell).exists(), "what is refused leaves no trace"
    store.start(cell, one)
    store.record_failure(cell, other, "another seed")
    assert "failed" not in json.loads((store.path(cell) / "started.json").read_text())


def test_nothing_readable_is_one_clear_line(
    call: Callable[..., tuple[int, str, str]], copied: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such folder; `longctx-bench run --out .*nowhere` makes one"):
        read_cells(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no results; `longctx-bench run"):
        read_cells(tmp_path / "empty")
    for folder in ResultStore(copied).folders():
        (folder / "cell.json").write_text("{")
    with pytest.raises(UserError, match=r"none of its 4 cells can be read; the first is tiny/rope/niah/512: cell.json"):
        read_cells(copied)
    code, _, error = call("report", copied)
    assert (code, len(error.strip().splitlines())) == (2, 1)


def test_what_is_no_cell_is_left_alone(copied: Path) -> None:
    (copied / "runs/notes.txt").write_text("mine")
    (copied / "runs/tiny/rope/niah/old").mkdir()
    (copied / "runs/tiny/rope/niah/old/cell.json").write_text("{}")
    (copied / "runs/tiny/rope/niah/4096").mkdir()
    results = read_cells(copied)
    assert (len(results.finished), results.missing) == (4, [])


def test_a_damaged_summary_is_not_done_and_runs_again(copied: Path, tiny_folder: Path, whole: Path) -> None:
    change(copied / HURT, spec_hash=None)
    registry = Registry(local_data={"ruler-essays": whole / "essays.txt"})
    frame = run(str(tiny_folder), "niah", length=[512], limit=12, engine="echo", out=copied, registry=registry)
    assert list(frame["n"]) == [12]
    assert read_cells(copied).missing == []
    assert (copied / HURT / "records.jsonl").read_bytes() == (whole / HURT / "records.jsonl").read_bytes()
