"""The command ``report`` on a folder as runs leave it: kinds of tables, files, half-written cells."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from helpers.result_stores import result_of, spec_of
from helpers.table_cells import hits

from longctx_bench.core.types import Cell, SampleRecord
from longctx_bench.store.run_store import ResultStore


def write(folder: Path, method: str, score: int, task: str = "niah", length: int = 512, seed: int = 42) -> Path:
    """Leave a finished cell of 20 examples, ``score`` of them right."""
    store, cell = ResultStore(folder), Cell("tiny", method, task, length)
    spec = spec_of(cell, {"seed": seed, "task": {"name": task, "params": {}, "protocol": "longctx-bench"}})
    store.start(cell, spec)
    store.append(
        cell,
        [
            SampleRecord(
                {"id": f"{i:06d}", "hash": f"{i:032d}", "score": value, "metric": "string_match_all", "text": "7",
                 "references": ["7"], "depths": [], "prompt_tokens": 500, "new_tokens": 3, "finish_reason": "eos"},
                0.1,
            )
            for i, value in enumerate(hits(score, 20))
        ],
    )  # fmt: skip
    result = result_of(
        cell, spec, score=score / 20, n=20, prompt_tokens=10_000, new_tokens=60, seconds=2.0, factor=length / 512,
        engine={"device": "cpu"},
    )  # fmt: skip
    store.finish(cell, result)
    return store.path(cell)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for method, score in (("rope", 2), ("yarn", 19), ("ntk", 18)):
        write(tmp_path, method, score)
    return tmp_path


def test_lengths_are_the_default(call, folder: Path) -> None:  # type: ignore[no-untyped-def]
    code, shown, error = call("report", folder, "--format", "md")
    assert (code, error) == (0, "")
    assert shown.count("| model |") == 1
    assert "| yarn-tiny | **95** [76, 99] |" in shown
    assert "| ntk-tiny | 90† [70, 97] |" in shown
    assert "| rope-tiny | 10 [3, 30] |" in shown


@pytest.mark.parametrize(("kind", "heading"), [("summary", "retention (%)"), ("cost", "examples/s")])
def test_kinds(call, folder: Path, kind: str, heading: str) -> None:  # type: ignore[no-untyped-def]
    code, shown, _ = call("report", folder, "--table", kind, "--format", "md")
    assert code == 0
    assert f"| {heading} |" in shown
    assert "[95 % interval], higher is better" not in shown
    code, shown, _ = call("report", folder, "--table", "all", "--format", "md")
    assert f"| {heading} |" in shown
    assert "[95 % interval], higher is better" in shown


def test_one_task_makes_no_table_of_tasks(call, folder: Path) -> None:  # type: ignore[no-untyped-def]
    code, _, error = call("report", folder, "--table", "tasks")
    assert (code, len(error.strip().splitlines())) == (2, 1)
    assert "no two tasks were measured at one length" in error
    write(folder, "rope", 5, task="vt")
    code, shown, _ = call("report", folder, "--table", "tasks", "--format", "csv")
    assert code == 0
    assert {line["task"] for line in csv.DictReader(io.StringIO(shown))} == {"niah", "vt"}


def test_the_price_is_a_column_of_the_lengths_alone(call, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for arguments in ((), ("--table", "lengths"), ("--format", "html")):
        code, shown, _ = call("report", folder, "--column", "price", *arguments)
        assert code == 0
        assert "1x - base (points)" in shown
    code, _, error = call("report", folder, "--column", "price", "--table", "cost")
    assert (code, len(error.strip().splitlines())) == (2, 1)
    assert "not with --table cost" in error
    write(tmp_path / "alone", "yarn", 3)
    code, _, error = call("report", tmp_path / "alone", "--column", "price")
    assert (code, len(error.strip().splitlines())) == (2, 1)
    assert "no method was measured beside rope" in error


def test_the_ending_of_the_file_chooses_the_format(call, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for name, begins in (
        ("t.tex", "% needs"),
        ("t.csv", "model,"),
        ("t.html", "<!doctype html>"),
        ("t.md", "**niah: "),
    ):
        code, shown, _ = call("report", folder, "--out", tmp_path / "out" / name)
        assert (code, shown) == (0, f"wrote {tmp_path / 'out' / name}\n")
        assert (tmp_path / "out" / name).read_text(encoding="utf-8").startswith(begins)


def test_half_written_and_differing_cells_are_named(call, folder: Path) -> None:  # type: ignore[no-untyped-def]
    path = write(folder, "pi", 3)
    (path / "started.json").write_text(json.dumps({"spec_hash": "0", "spec": {}}))
    (path / "cell.json").unlink()
    write(folder, "llama3", 3, seed=7)
    code, shown, error = call("report", folder, "--format", "md")
    assert code == 0
    assert "| pi-tiny |" not in shown
    assert "tiny/pi/niah/512" in error
    assert "not the same for all cells: seed is 7, not 42, in llama3-tiny" in shown


def test_a_folder_of_nothing_but_beginnings_says_so(call, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path, "rope", 2)
    (path / "cell.json").rename(path / "started.json")
    code, shown, error = call("report", tmp_path)
    assert (code, shown) == (2, "")
    assert error.startswith("missing: tiny/rope/niah/512: not finished")
    assert error.endswith(f"{tmp_path}: no cell is finished yet, of 1; the same run command completes them\n")
    assert call("show", "rope-tiny/niah/512", "--out", tmp_path)[2].startswith(
        f"longctx-bench: {tmp_path}: tiny/rope/niah/512: not finished"
    )


def test_a_folder_that_is_none_or_inside_a_run_is_named(call, folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    code, _, error = call("report", tmp_path / "file")
    assert (code, f"{tmp_path / 'file'}: is not a bundle" in error) == (2, True)
    code, _, error = call("report", folder / "runs" / "tiny")
    assert (code, error.endswith(f"the run's folder, {folder}\n")) == (2, True)


def test_html_with_a_kind_of_table_is_plain(call, folder: Path) -> None:  # type: ignore[no-untyped-def]
    code, shown, _ = call("report", folder, "--format", "html", "--table", "cost")
    assert (code, "examples/s" in shown, "<script" in shown) == (0, True, False)
    code, _, error = call("report", folder, "--format", "html", "--table", "cost", "--examples", "1")
    assert (code, "--examples goes with the page" in error) == (2, True)
