from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longctx_bench.core.errors import UserError
from longctx_bench.core.io import shipped_folder
from longctx_bench.training.optimization import learning_rate
from longctx_bench.training.recipe import find_recipe, read_recipe


@pytest.mark.parametrize("path", sorted((shipped_folder("baselines") / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    assert read_recipe(path).name == path.stem


def test_overrides_reach_inside(small: Any) -> None:
    recipe = read_recipe(small(), {"shape.layers": "2", "lr": "3e-4", "data.0.path": "other.txt"})
    assert recipe.shape is not None
    assert (recipe.shape.layers, recipe.lr, recipe.data[0].path) == (2, 3e-4, "other.txt")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 1}, "unknown key 'learning_rate'"),
        ({"positions": "drope"}, "recalibrates a base"),
        ({"kind": "recalibrate", "positions": "drope", "base": "x"}, "no 'shape'"),
        ({"kind": "control"}, "needs 'base'"),
        ({"kind": "control", "base": "x", "shape": None, "positions": "drope"}, "goes with"),
        ({"qk_norm": True}, "'qk_norm' is for"),
        ({"rope_theta": 1e4}, "'rope_theta' is for kind 'control'"),
        ({"kind": "control", "base": "x", "shape": None, "rope_theta": 0}, "rope_theta"),
        ({"tokens_per_step": 100}, "multiple of sequence_length"),
        ({"tokens": 10}, "less than one step"),
        ({"data": [{"path": "a", "hub": "b/c"}]}, "either 'path' or 'hub'"),
    ],
)
def test_a_wrong_recipe_is_one_clear_line(small: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        read_recipe(small(**changes))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_names_its_near_miss() -> None:
    with pytest.raises(UserError, match="did you mean 'drope-tiny'"):
        find_recipe("dropetiny")


def test_an_override_without_a_place_is_refused(small: Any) -> None:
    with pytest.raises(UserError, match=r"data\.7\.path"):
        read_recipe(small(), {"data.7.path": "x"})


def test_the_identity_is_what_decides_the_weights(small: Any) -> None:
    path = small()
    same = read_recipe(path, {"corpus": "elsewhere", "compile": "true", "evaluate_every": "9"})
    assert read_recipe(path).identity() == same.identity()
    assert read_recipe(path).identity() != read_recipe(path, {"seed": "1"}).identity()


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_learning_rate_warms_up_and_decays(small: Any, schedule: str) -> None:
    recipe = read_recipe(small(schedule=schedule, tokens=100 * 256, warmup_steps=10))
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == pytest.approx(1e-3)
    assert rates[99] < 1.5e-4
    assert (rates[50] == max(rates)) == (schedule == "wsd")


@pytest.mark.slow
def test_reading_a_recipe_needs_no_torch() -> None:
    code = "import sys, longctx_bench.training.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
