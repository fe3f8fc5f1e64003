"""Ratios that benchmarks keep, and their plot."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import results
from longctx_bench.core.errors import UserError


def test_ratios_are_kept_where_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "found.jsonl"
    monkeypatch.delenv(results.FILE, raising=False)
    results.keep("nowhere", 2.0)
    monkeypatch.setenv(results.FILE, str(path))
    for name, ratio in (("a", 2.0), ("b", 0.9), ("a", 3.0)):
        results.keep(name, ratio)
    assert results.read(path) == {"a": 3.0, "b": 0.9}


def test_the_plot_has_a_bar_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = results.draw({"one": 6.5, "two": 0.91})
    [axes] = figure.axes
    assert [1 + bar.get_width() for bar in axes.patches] == pytest.approx([6.5, 0.91])
    assert [text.get_text() for text in axes.texts] == ["6.5x", "0.91x"]
    path = tmp_path / "found.jsonl"
    path.write_text('{"name": "one", "ratio": 2}\n')
    monkeypatch.setattr("sys.argv", ["ratios", str(path)])
    results.main()
    assert (tmp_path / "found.png").stat().st_size > 1000


@pytest.mark.parametrize("text", ["", "no json", '{"name": "one"}', "[]"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "found.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=r"found\.jsonl"):
        results.read(path)
