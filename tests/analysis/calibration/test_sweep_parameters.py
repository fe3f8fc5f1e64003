"""Sweeps of parameters: the best setting is found and used, the method's own stays where none is better."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from longctx_bench.analysis.calibration.sweep_parameters import (
    Trial,
    num_trials,
    settings_to_try,
    sweep_parameters,
    write_parameters,
)
from longctx_bench.core.errors import UserError
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.self_extend import SelfExtend
from longctx_bench.models.variant import ModelUnderTest

BASE = BaseModelInfo("tiny", 256, {"rope_theta": 10000.0, "hidden_size": 48, "num_attention_heads": 4})
SETTINGS = settings_to_try(SelfExtend(), {"group": [2, 4, 8], "window": [32, 64]})


class Best:
    """An objective that likes group = 2 s, and a window of 32."""

    name = "retrieval"
    data = "made up"

    def score(self, model: ModelUnderTest, n: int) -> float:
        method = model.method
        assert isinstance(method, SelfExtend)
        if method.group is None:
            return 0.5
        return (method.group == 2 * model.length / 256) * 0.4 + (method.window == 32) * 0.2


def test_the_settings_are_the_methods_own_and_the_product() -> None:
    assert SETTINGS[:3] == [{}, {"group": 2, "window": 32}, {"group": 2, "window": 64}]
    assert len(SETTINGS) == 7
    assert settings_to_try(SelfExtend(), {"group": ["2"]}) == [{}, {"group": 2}]


def test_the_best_setting_is_found_at_every_scale(tmp_path: Path) -> None:
    told: list[Trial] = []
    sweep = sweep_parameters(SelfExtend(), BASE, Best(), SETTINGS, [2.0, 4.0, 8.0], 5, told.append)
    assert sweep.table == {2.0: {"group": 4, "window": 32}, 4.0: {"group": 8, "window": 32}, 8.0: {}}
    assert told == sweep.trials
    assert len(told) == num_trials(SETTINGS, [2.0, 4.0, 8.0])
    finals = [trial.parameters for trial in told if trial.n == 10 and trial.scale == 2]
    assert finals == [{}, {"group": 4, "window": 32}, {"group": 4, "window": 64}]
    path = write_parameters(tmp_path, SelfExtend(), "self-extend", Best(), sweep)
    fit = json.loads(path.read_text())["parameters"]["self-extend"]["retrieval"]
    assert fit["table"] == {"2": {"group": 4, "window": 32}, "4": {"group": 8, "window": 32}, "8": {}}
    assert fit["sweep"][1] == {"scale": 2.0, "parameters": {"group": 2, "window": 32}, "score": 0.2, "n": 5}


def test_a_second_objective_and_a_scalar_stay_beside_it(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text('{"temperature": {"retrieval": {"c": 1}}}')
    sweep = sweep_parameters(SelfExtend(), BASE, Best(), SETTINGS, [2.0], 5, lambda trial: None)
    for name in ("retrieval", "perplexity"):
        objective = Best()
        objective.name = name
        path = write_parameters(tmp_path, SelfExtend(), "self-extend", objective, sweep)
    written = json.loads(path.read_text())
    assert written["temperature"] == {"retrieval": {"c": 1}}
    assert written["parameters"]["self-extend"].keys() == {"retrieval", "perplexity"}


def test_a_foreign_file_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text('{"parameters": [1]}')
    sweep = sweep_parameters(SelfExtend(), BASE, Best(), SETTINGS, [2.0], 5, lambda trial: None)
    with pytest.raises(UserError, match=r"calibration\.json: not a calibration"):
        write_parameters(tmp_path, SelfExtend(), "self-extend", Best(), sweep)
    assert json.loads((tmp_path / "calibration.json").read_text()) == {"parameters": [1]}


class Same(Best):
    """An objective that says the same of every setting."""

    def __init__(self, score: float) -> None:
        self._score = score

    def score(self, model: ModelUnderTest, n: int) -> float:
        return self._score


def test_of_equals_the_methods_own_setting_is_chosen_at_once() -> None:
    sweep = sweep_parameters(SelfExtend(), BASE, Same(1.0), SETTINGS, [2.0], 5, lambda trial: None)
    assert sweep.table == {2.0: {}}
    assert len(sweep.trials) == len(SETTINGS)


@pytest.mark.parametrize("score", [0.0, math.nan, -math.inf], ids=str)
def test_nothing_is_chosen_where_nothing_was_found(score: float) -> None:
    with pytest.raises(UserError, match=r"calibrate --param.*nothing is written"):
        sweep_parameters(SelfExtend(), BASE, Same(score), SETTINGS, [2.0], 5, lambda trial: None)


@pytest.mark.slow
def test_runs_use_and_tables_show_what_the_command_chose(
    call: Any, tiny_folder: Path, essays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(tiny_folder, folder)
    # Random weights find nothing, of which no sweep could choose.
    monkeypatch.setattr("longctx_bench.analysis.calibration.objectives.Retrieval.score", Best.score)
    data = ("--data", f"ruler-essays={essays}", "--device", "cpu")
    status, out, _ = call(
        "calibrate", f"self-extend:{folder}", "--param", "group=2,4", "--param", "window=32", "--scale", "4x,2x", *data
    )
    assert status == 0
    assert "2x  group 4, window 32  retrieval 0.6000  n 33  (3/10, ETA" in out
    assert "best parameters: 2x: group 4, window 32; 4x: its own" in out
    models = f"self-extend:{folder},self-extend+tuned:{folder}"
    status, out, _ = call(
        "run", "--model", models, "--tasks", "niah", "--scale", "1x,2x,4x", "--limit", "1", "--out", tmp_path / "run",
        *data,
    )  # fmt: skip
    assert status == 0
    assert "self-extend+tuned-mine: parameters swept by retrieval: group 4, window 32 at 512; its own at 1,024" in out
    cells = {
        (method, length): json.loads((tmp_path / f"run/runs/mine/{method}/niah/{length}/cell.json").read_text())
        for method in ("self-extend", "self-extend+tuned")
        for length in (256, 512)
    }
    chosen = {"scale": 2.0, "parameters": {"group": 4, "window": 32}, "objective": "retrieval"}
    assert cells["self-extend+tuned", 512]["tuned"] == chosen
    assert "tuned" not in cells["self-extend+tuned", 256]
    assert "tuned" not in cells["self-extend", 512]
    assert cells["self-extend+tuned", 512]["spec_hash"] != cells["self-extend", 512]["spec_hash"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--param", "gruop=2"), "did you mean 'group'"),
        (("--param", "calibration=retrieval"), "calibration: self-extend has no such parameter"),
        (("--param", "group=0"), "'group': Input should be greater than or equal to 1 (got 0)"),
        (("--param", "group=many"), "'group'"),
        (("--param", "group=[2"), "a value is not YAML"),
        (("--param", "group"), "expected NAME=VALUES"),
        (("--param", "group= ,"), "names no value"),
        (("--param", "group=2", "--param", "group=4"), "named twice"),
        (("--param", "window=128,513"), "window of 513 tokens is longer than the training context of 512"),
        (("--param", "group=2", "--scale", "1x"), "beyond the training context"),
        (("--param", "group=2", "--objective", "perplexity"), "needs --text FILE"),
        (("--param", "group=2", "--per-head"), "--per-head and --param"),
        (("--param", "group=2", "--search"), "--param and --search"),
    ],
    ids=str,
)
def test_wrong_input_gets_one_line_before_any_model_is_loaded(
    call: Any, arguments: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longctx_bench.engines.hf.engine.HFEngine.load", lambda *_: pytest.fail("loaded"))
    status, _, error = call("calibrate", "self-extend-tiny", *arguments, "--out", tmp_path, "--device", "cpu")
    assert status == 2
    assert named in error
    assert len(error.strip().splitlines()) == 1
