"""Results of weights trained under virtual length say so, in the cell and under every table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from longctx_bench.core.sources import shipped_checkpoint_folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of drope-tiny without any recipe beside it."""
    folder = tmp_path / "virtual"
    shutil.copytree(shipped_checkpoint_folder("drope-tiny"), folder)
    (folder / "recipe.json").unlink(missing_ok=True)
    return folder


def run(call: Any, checkpoint: Path, out: Path) -> tuple[dict[str, Any], str]:
    """Return the finished cell and the report of it."""
    arguments = ("--tasks", "niah", "--scale", "1x", "--limit", "1", "--engine", "echo", "--out", out)
    code, _, error = call("run", "--model", f"drope:{checkpoint}", *arguments)
    assert code == 0, error
    code, report, error = call("report", out, "--format", "md")
    assert code == 0, error
    (file,) = out.glob("runs/*/*/*/*/cell.json")
    return json.loads(file.read_text()), report


def test_the_largest_factor_is_in_the_cell_and_under_the_table(checkpoint: Path, tmp_path: Path, call: Any) -> None:
    (checkpoint / "recipe.json").write_text('{"name": "mine", "virtual_length": {"factor": 16.0, "share": 0.75}}')
    cell, report = run(call, checkpoint, tmp_path / "out")
    assert cell["virtual_length"] == 16.0
    assert "virtual length up to 16x, which is not part of the DroPE paper's recipe" in report


@pytest.mark.parametrize("recipe", [None, '{"name": "plain"}', '{"name": "plain", "virtual_length": null}'])
def test_plain_weights_say_nothing(recipe: str | None, checkpoint: Path, tmp_path: Path, call: Any) -> None:
    if recipe is not None:
        (checkpoint / "recipe.json").write_text(recipe)
    cell, report = run(call, checkpoint, tmp_path / "out")
    assert "virtual_length" not in cell
    assert "virtual length" not in report


@pytest.mark.parametrize("recipe", ["[]", '{"virtual_length": 3}', '{"virtual_length": {"factor": 1e999}}', '{"a"'])
def test_a_damaged_recipe_is_one_line(recipe: str, checkpoint: Path, tmp_path: Path, call: Any) -> None:
    (checkpoint / "recipe.json").write_text(recipe)
    arguments = ("--tasks", "niah", "--scale", "1x", "--limit", "1", "--engine", "echo", "--out", tmp_path / "out")
    code, _, error = call("run", "--model", f"drope:{checkpoint}", *arguments)
    assert code == 2
    assert "recipe.json" in error
    assert not list((tmp_path / "out").glob("runs/*/*/*/*/records.jsonl"))
