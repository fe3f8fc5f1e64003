"""Cells with scores that the test chooses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.result_stores import Scores, write_store

from longctx_bench.reporting.results import CellSummary, read_cells


@pytest.fixture
def cells(tmp_path: Path) -> Callable[..., list[CellSummary]]:
    """Write a store and read its cells."""

    def made(scores: Scores, **settings: Any) -> list[CellSummary]:
        write_store(tmp_path / "run", scores, **settings)
        return read_cells(tmp_path / "run").finished

    return made
