"""Small words that say how many and how far: counts of what was left out, spans, axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.table_cells import cell, hits

from longctx_bench.analysis.calibration.calibrate import CalibrationResult, SweepPoint, write_calibration
from longctx_bench.core.errors import UserError
from longctx_bench.methods.drope import DroPE
from longctx_bench.reporting.comparison import compare
from longctx_bench.reporting.tables.footnotes import scores_note, size_note


@pytest.mark.parametrize(("tasks", "more"), [(1, ""), (2, " (and 1 more such cells)"), (3, " (and 2 more such cells)")])
def test_how_many_cells_cannot_be_compared(tasks: int, more: str) -> None:
    cells = [
        cell(name, hits(3, 10), task=f"task{place}", prompts=name) for place in range(tasks) for name in ("pi", "yarn")
    ]
    with pytest.raises(UserError) as refused:
        compare(cells, "pi-tiny", "yarn-tiny")
    assert str(refused.value).startswith("nothing to compare: task0 at 1024: ")
    assert str(refused.value).partition("not compared")[2] == more


def test_how_small_a_difference_shows() -> None:
    one, several = cell("pi", hits(50)), [cell("pi", hits(50)), cell("yarn", hits(20, 50))]
    assert "depending" not in size_note([one])
    assert "depending" not in size_note([one, one])
    noted = size_note(several)
    assert "n = 50 to 100 could have shown" in noted
    assert "6 to 12 points, depending on the cell" in noted
    assert "n = 50 to 100 could" in scores_note([hits(50), hits(20, 50)], one)
    losses = cell("pi", [2.0, 3.0, 2.5] * 5, metric="token_loss")
    assert "points" not in size_note([losses])
    assert "nats" in size_note([losses])


def test_the_axes_of_a_sweep_say_what_was_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig

    def kept(self: Figure, *arguments: Any, **named: Any) -> None:
        drawn.append(self)
        save(self, *arguments, **named)

    monkeypatch.setattr(Figure, "savefig", kept)
    fit = CalibrationResult(
        {2.0: 1.1, 4.0: 1.2},
        0.14,
        [SweepPoint(2.0, 1.0, 0.5, 3), SweepPoint(2.0, 1.1, 0.6, 3), SweepPoint(4.0, 1.2, 0.7, 3)],
    )
    method = DroPE()
    for name, label in (("retrieval", "share found"), ("perplexity", "log-likelihood")):
        write_calibration(tmp_path, method, "drope", SimpleNamespace(name=name, data={}), fit)  # type: ignore[arg-type]
        [axis] = drawn.pop().axes
        assert axis.get_xlabel() == str(method.tunable).replace("_", " ") != ""
        assert label in axis.get_ylabel()
        assert [line.get_text() for line in axis.get_legend().get_texts()] == ["2x", "4x"]
