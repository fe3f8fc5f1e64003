"""The progress of a run in a notebook, with and without ipywidgets."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import longctx_bench
from longctx_bench.runner.progress_bar import ProgressBar


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook displays, as text."""
    displayed: list[str] = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(
        "rich.jupyter.display", lambda segments, text: displayed.append(re.sub(r"\x1b\[[\d;]*m", "", text))
    )
    return displayed


def test_without_ipywidgets_a_notebook_gets_a_line_per_cell_and_no_warning(
    shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        longctx_bench.run("rope-tiny", length=256, limit=2, engine="echo", out=tmp_path)
    assert [line.strip() for line in shown if line.strip()] == ["rope-tiny/niah/256: 2 examples to run"]


def test_with_ipywidgets_a_notebook_gets_a_moving_bar(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Output:
        def __enter__(self) -> None:
            bars.append(self)

        def __exit__(self, *_: object) -> None: ...

        def clear_output(self, wait: bool) -> None: ...

    for name, attribute in (("ipywidgets", "Output"), ("IPython", "display"), ("IPython.display", "display")):
        module = ModuleType(name)
        module.__spec__ = sys.__spec__
        setattr(module, attribute, Output if name == "ipywidgets" else lambda value: None)
        monkeypatch.setitem(sys.modules, name, module)
    with ProgressBar() as bar:
        bar.begin(cells=1, examples=4)
        bar.advance(3)
    assert bars
    assert "3/4" in "".join(shown)
