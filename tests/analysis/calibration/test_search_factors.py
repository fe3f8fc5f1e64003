"""LongRoPE's search: lists are monotonic and improve, a seed decides everything, and runs use what was found."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from longctx_bench.analysis.calibration.objectives import NeedleLoss, answer_ids
from longctx_bench.analysis.calibration.search_factors import (
    Budget,
    FactorSearch,
    search_factors,
    starting_lists,
)
from longctx_bench.core.errors import UserError
from longctx_bench.engines.hf.engine import HFEngine
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.rope_scaling import LongRoPE, RoPE
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry

BASE = BaseModelInfo(
    "tiny", 256, {"model_type": "llama", "rope_theta": 1e4, "hidden_size": 48, "num_attention_heads": 4}
)
BEST = (1.0, 1.1, 1.4, 1.45, 2.2, 2.4)
BUDGET = Budget(population=16, generations=12)


class Near:
    """An objective that knows the best factors; it counts its lists."""

    name = "needle-loss"
    data = "made up"

    def __init__(self) -> None:
        self.lists: list[tuple[float, ...]] = []

    def score(self, model: ModelUnderTest, n: int) -> float:
        method = model.method
        assert isinstance(method, LongRoPE)
        assert method.long_factor == method.short_factor
        assert method.long_factor is not None
        self.lists.append(method.long_factor)
        return -sum((a - b) ** 2 for a, b in zip(method.long_factor, BEST, strict=True))


def searched(seed: int, objective: Near | None = None) -> FactorSearch:
    return search_factors(BASE, objective or Near(), [2.0], 3, BUDGET, seed, lambda point: None)


def test_the_search_improves_on_what_it_starts_from() -> None:
    objective = Near()
    search = searched(7, objective)
    losses = [point.loss for point in search.points]
    assert len(losses) == 1 + BUDGET.generations
    assert all(later <= earlier for earlier, later in pairwise(losses))
    assert losses[-1] < 0.3 * min(search.starts[2.0].values())
    assert sum((a - b) ** 2 for a, b in zip(search.table[2.0], BEST, strict=True)) == pytest.approx(losses[-1])


def test_lists_are_monotonic_within_bounds_and_measured_once() -> None:
    objective = Near()
    search = searched(7, objective)
    assert len(set(objective.lists)) == len(objective.lists) == search.points[-1].evaluations <= BUDGET.evaluations
    for factors in objective.lists:
        assert factors[0] >= 1
        assert all(a <= b for a, b in pairwise(factors))
        assert factors[-1] <= 2.5


def test_the_seed_decides_everything() -> None:
    assert searched(7) == searched(7)
    assert searched(7).table != searched(8).table


def test_the_default_budget_is_the_authors() -> None:
    assert (Budget().children, Budget().evaluations) == (16, 64 + 40 * 32)


def test_it_starts_from_pi_ntk_and_yarn() -> None:
    lists = starting_lists(BASE, 512)
    assert lists["pi"] == pytest.approx([2] * 6)
    assert lists["ntk"] == pytest.approx([2 ** (pair / 5) for pair in range(6)])
    assert lists["yarn"][0] == pytest.approx(1)
    assert lists["yarn"][-1] == pytest.approx(2)


@pytest.mark.slow
def test_the_loss_is_that_of_the_answers(tiny_folder: Path, tiny_encoder: Any, essays: Path) -> None:
    registry = Registry(local_data={"ruler-essays": essays})
    engine = HFEngine("cpu", "float32")
    engine.load(tiny_folder)
    goal = NeedleLoss(engine, tiny_encoder, registry, 5)
    losses = []
    for task in ("niah", "niah_multikey"):
        for example in registry.benchmark(registry.tasks[task]).examples(tiny_encoder, 400, 16, 2, 5 + 1_000_003):
            prompt, answer = (
                tiny_encoder.encode(example.prompt, example.answer_prefix),
                answer_ids(tiny_encoder, example),
            )
            assert tiny_encoder.tokenizer.decode(answer).strip() == f"{example.references[0]}."
            ids = torch.tensor([[*prompt, *answer]])
            with torch.inference_mode():
                logits = engine.model(ids).logits[0, len(prompt) - 1 : -1]
            losses += torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="none").tolist()
    assert goal.score(ModelUnderTest(BASE, RoPE(), 400), 2) == pytest.approx(-sum(losses) / len(losses), rel=1e-5)


@pytest.mark.slow
def test_the_command_writes_what_runs_use_and_gives_the_same_again(
    call: Any, tiny_folder: Path, essays: Path, tmp_path: Path
) -> None:
    data = ("--data", f"ruler-essays={essays}", "--device", "cpu")
    fits = []
    for name in ("one", "two"):
        shutil.copytree(tiny_folder, tmp_path / name)
        status, out, _ = call(
            "calibrate", f"longrope:{tmp_path / name}", "--search", "--scale", "2x", "--population", "4",
            "--generations", "2", "--limit", "1", "--seed", "3", *data,
        )  # fmt: skip
        assert status == 0
        assert "2x  generation 2/2  lists 8/8  loss of answers" in out
        assert "needles found: 2x:" in out
        fits.append(
            json.loads((tmp_path / name / "calibration.json").read_text())["parameters"]["longrope"]["needle-loss"]
        )
        fits[-1].pop("made")
    assert fits[0] == fits[1]
    assert fits[0]["budget"] == {"population": 4, "generations": 2, "evaluations": {"2": 8}}
    assert fits[0]["seed"] == 3
    assert fits[0]["starts"]["2"].keys() == {"pi", "ntk", "yarn"}
    status, out, _ = call(
        "run", "--model", f"longrope:{tmp_path / 'one'}", "--tasks", "niah", "--scale", "1x,2x", "--limit", "1",
        "--out", tmp_path / "run", *data,
    )  # fmt: skip
    assert status == 0
    assert "longrope-one: factors searched by the loss of needles' answers: those for 2x at 512" in out
    cell = json.loads((tmp_path / "run/runs/one/longrope/niah/512/cell.json").read_text())
    assert cell["applied"]["rope_parameters"]["long_factor"] == fits[0]["table"]["2"]["long_factor"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("yarn-tiny", "--search"), "longrope-BASE"),
        (("longrope-tiny", "--search", "--population", "3"), "population"),
        (("longrope-tiny", "--search", "--generations", "0"), "generations"),
        (("longrope-tiny", "--search", "--scale", "1x"), "beyond the training context"),
        (("longrope-tiny", "--search", "--objective", "perplexity"), "leave --objective out"),
    ],
    ids=str,
)
def test_wrong_input_gets_one_line_before_any_model_is_loaded(
    call: Any, arguments: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("longctx_bench.engines.hf.engine.HFEngine.load", lambda *_: pytest.fail("loaded"))
    status, _, error = call("calibrate", *arguments, "--out", tmp_path, "--device", "cpu")
    assert status == 2
    assert named in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2", "n_embd": 48, "n_head": 4}, "a gpt2 has no rotary positions"),
        (
            {**BASE.config, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0}},
            "already scaled",
        ),
    ],
    ids=str,
)
def test_a_base_whose_rotation_cannot_be_searched_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        starting_lists(BaseModelInfo("other", 256, config), 512)
