"""Fitting temperatures by head: the loss falls, no weight changes, and runs use what was written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from longctx_bench.analysis.calibration import fit_head_temperatures as fits
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.drope import DroPE
from longctx_bench.methods.head_temperatures import HeadTemperatures, query_modules
from longctx_bench.methods.nope import NoPE
from longctx_bench.models.checkpoint import checkpoint_folder
from longctx_bench.models.variant import ModelUnderTest
from longctx_bench.registry import Registry


def small_model() -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=160, initializer_range=0.3, max_position_embeddings=64,
        )
    ).eval()  # fmt: skip


def sequences(lengths: tuple[int, ...]) -> list[fits._Sequence]:
    generator = torch.Generator().manual_seed(5)
    return [
        fits._Sequence(tuple(torch.randint(160, (length,), generator=generator).tolist()), length - 6)
        for length in lengths
    ]


def test_the_loss_falls_and_the_weights_stay() -> None:
    model = small_model()
    model.get_output_embeddings().weight.requires_grad_(False)
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in model.named_parameters()}
    batch = sequences((40,) * fits.BATCH)
    told: list[fits.FitPoint] = []
    start = torch.zeros(2, 4)
    fitted, points = fits._descend(model, query_modules(model), start, [batch] * 40, 40, 2.0, 200, told.append)
    assert points == told
    assert len(points) == 10
    assert points[-1].step == 40
    losses = [point.answer_loss + fits.TEXT_WEIGHT * point.text_loss for point in points]
    assert losses[-1] < losses[0] - 0.05
    assert fitted.shape == (2, 4)
    assert (fitted.abs() > 0.05).all()
    assert not start.any()
    for name, parameter in model.named_parameters():
        tensor, needed = before[name]
        assert torch.equal(parameter, tensor)
        assert parameter.requires_grad == needed
        assert parameter.grad is None


def test_padding_and_passes_do_not_change_the_loss() -> None:
    model, batch = small_model(), sequences((40, 37, 33))
    with torch.no_grad():
        together = fits._losses(model, batch)
        answers = [float(fits._losses(model, [sequence])[0]) for sequence in batch]
    # Six answer tokens each.
    assert float(together[0]) == pytest.approx(sum(answers) / 3, rel=1e-5)
    ids = torch.tensor([batch[0].ids])
    with torch.no_grad():
        logits = model(ids).logits[0].log_softmax(-1)
    expected = -sum(float(logits[place - 1, batch[0].ids[place]]) for place in range(34, 40)) / 6
    assert answers[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("best", "weight"), [(1.0, 0.0), (1.2, 0.5), (9.0, 1.0)])
def test_the_interpolation_that_retrieves_most_is_chosen(best: float, weight: float) -> None:
    """The fitted temperature of the first head at 2x is 1.44; retrieval is better the nearer it is to ``best``."""
    base = BaseModelInfo("mine", 512, {"model_type": "llama"})
    method = DroPE(calibration="heads", temperature=HeadTemperatures(table={2: ("1.2 1.2",)}))
    fitted = HeadTemperatures.from_grids({2: [[1.44, 0.25]], 4: [[1.44, 0.25]]})
    seen: list[tuple[int, int]] = []

    class Nearness:
        name, data = "retrieval", "nothing"

        def score(self, model: ModelUnderTest, n: int) -> float:
            seen.append((model.length, n))
            assert isinstance(model.method, DroPE)
            grid = model.method.temperature.at(model.length / 512)  # type: ignore[union-attr]
            return -abs(grid[0][0] - best)

    told: list[fits.InterpolationPoint] = []
    chosen, points = fits.choose_interpolation(method, base, fitted, Nearness(), 3, told.append)
    assert seen == [(1024, 3)] * 5 + [(2048, 3)] * 5
    assert [point.weight for point in told] == [*fits.INTERPOLATION_WEIGHTS, *fits.INTERPOLATION_WEIGHTS]
    assert {scale: point.weight for scale, point in points.items()} == {2: weight, 4: weight}
    assert chosen.at(2)[0] == pytest.approx([1.44**weight, 0.25**weight], abs=1e-4)  # type: ignore[index]


def test_of_weights_that_retrieve_the_same_the_largest_is_chosen() -> None:
    class Same:
        name, data = "retrieval", "nothing"

        def score(self, model: ModelUnderTest, n: int) -> float:
            return 1.0

    base, fitted = BaseModelInfo("mine", 512, {"model_type": "llama"}), HeadTemperatures.from_grids({2: [[1.44, 0.25]]})
    chosen, points = fits.choose_interpolation(NoPE(), base, fitted, Same(), 1, lambda point: None)
    assert (chosen, points[2].weight) == (fitted, 1.0)


@pytest.mark.slow
def test_the_command_writes_what_runs_use(call: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(checkpoint_folder(Registry().variant("drope-tiny").source), folder)
    status, out, _ = call(
        "calibrate", f"drope:{folder}", "--per-head", "--scale", "1.25x", "--steps", "1", "--limit", "2",
        "--device", "cpu",
    )  # fmt: skip
    assert status == 0
    assert "step 1/1" in out
    assert "1.25x  interpolation weight 0.5  retrieval" in out
    assert "needles found: 1.25x" in out
    written = json.loads((folder / "calibration.json").read_text())["temperature"]
    assert {"heads", "retrieval", "perplexity"} <= written.keys()
    rows = written["heads"]["table"]["1.25"]
    assert [len(row.split()) for row in rows] == [5] * 8
    # The first step of Adam moves all by as much, up or down.
    assert len({value for row in rows for value in row.split()}) == 2
    assert written["heads"]["interpolation"]["1.25"] in fits.INTERPOLATION_WEIGHTS
    assert written["heads"]["data"].startswith("niah, niah_multikey, niah_multiquery, niah_multivalue, seed ")
    status, out, _ = call(
        "run", "--model", f"drope:{folder}", "--tasks", "niah", "--scale", "1.25x", "--limit", "1", "--device", "cpu",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 0
    assert "mean head temperature by retrieval" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("pi-tiny", "--per-head"), "pi"),
        (("drope-tiny", "--per-head"), "--out"),
        (("drope-tiny", "--per-head", "--scale", "1x"), "1x"),
        (("drope-tiny", "--per-head", "--tasks", "niah,vt"), "vt"),
        (("drope-tiny", "--per-head", "--tasks", "none"), "none"),
        (("drope-tiny", "--per-head", "--objective", "perplexity"), "--objective"),
        (("drope-tiny", "--per-head", "--steps", "0"), "steps"),
        (("drope-tiny", "--tasks", "vt", "--out", "x"), "vt"),
        (("drope-tiny", "--tasks", "", "--out", "x"), "task"),
        (("drope-tiny", "--tasks", "niah", "--objective", "perplexity", "--text", "x", "--out", "x"), "--tasks"),
        (("longrope-tiny", "--search", "--tasks", "niah", "--out", "x"), "--tasks"),
    ],
)
def test_wrong_input_gets_one_line(call: Any, arguments: tuple[str, ...], named: str) -> None:
    status, _, error = call("calibrate", *arguments)
    assert status == 2
    assert named in error
    assert "Traceback" not in error
