"""The invented store that reports are timed on: like a real one, and the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.report_speed import measure
from bench.synthetic_store import make_store
from longctx_bench.reporting.results import read_cells


def test_an_invented_store_reads_like_a_real_one(tmp_path: Path) -> None:
    assert make_store(tmp_path, contestants=12, tasks=10, lengths=2, examples=11) == 12 * 10 * 2 * 11
    results = read_cells(tmp_path)
    assert (len(results.finished), results.missing) == (12 * 10 * 2, [])
    by_name = {str(summary.cell): summary for summary in results.finished}
    one, same, other = (
        by_name[name] for name in ("rope-base-0/niah/512", "pi-base-0/niah/512", "rope-base-1/niah/512")
    )
    assert (one.hashes == same.hashes).all()
    assert not (one.hashes == other.hashes).any()
    assert sorted(one.by_depth) == [10.0 * place for place in range(11)]
    assert by_name["rope-base-0/perplexity/1024"].metric == "token_loss"
    graded = np.unique(np.concatenate([s.scores for s in results.finished if s.cell.task == "hotpotqa"]))
    assert len(graded) > 20
    assert graded.min() >= 0
    assert graded.max() <= 1
    again = tmp_path / "again"
    make_store(again, contestants=12, tasks=10, lengths=2, examples=11)
    name = "runs/base-1/rope/vt/1024/records.jsonl"
    assert (again / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.slow
def test_the_timing_says_what_it_read(tmp_path: Path) -> None:
    made, reading, report = measure(2, 3, 2, 5, tmp_path)
    assert made.startswith("made 60 records in 12 cells, ")
    assert reading.startswith("reading: ")
    assert "GiB" in report
    assert "| rope-base-0 |" in (tmp_path / "report.md").read_text()
