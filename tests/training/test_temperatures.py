"""Softmax temperatures that training sequences draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from longctx_bench.core.errors import UserError
from longctx_bench.training.causal_attention import use_training_attention
from longctx_bench.training.data.sequence_packing import Batches, PackedText
from longctx_bench.training.models import fresh_model
from longctx_bench.training.optimization import NextTokenLoss
from longctx_bench.training.recipe import Shape, read_recipe
from longctx_bench.training.train import train

SHAPE = Shape(hidden_size=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab_size=300)
ROWS = torch.randint(0, 300, (3, 33), generator=torch.Generator().manual_seed(0))


def _loss() -> NextTokenLoss:
    model = fresh_model(SHAPE, "nope", 32, 300, 0, seed=1)
    use_training_attention(model, "nope")
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.mul_(20)
    return NextTokenLoss(model, "fp32")


def test_one_changes_nothing_and_others_multiply_the_logits() -> None:
    loss = _loss()
    plain = loss(ROWS)
    torch.testing.assert_close(loss(ROWS, torch.ones(3, 1)), plain)
    sharper = loss(ROWS, torch.full((3, 4), 1.7))
    assert abs((sharper - plain).item()) > 1e-4
    for layer in loss.model.model.layers:
        layer.self_attn.q_proj.weight.data.mul_(1.7)
    torch.testing.assert_close(sharper, loss(ROWS))


def test_each_sequence_has_its_own() -> None:
    loss = _loss()
    both = loss(ROWS[:2], torch.tensor([[0.5], [2.0]]))
    alone = [loss(ROWS[place : place + 1], torch.tensor([[value]])) for place, value in enumerate((0.5, 2.0))]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


def test_draws_are_a_function_of_seed_and_step() -> None:
    import numpy as np

    text = PackedText([np.arange(1000, dtype=np.uint16)], 10)
    first, again, other = (Batches(text, 64, seed).temperatures(5, 0.5, 1.0, 3) for seed in (1, 1, 2))
    assert first.shape == (64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.min() >= 0.5
    assert first.max() <= 1.0
    assert abs(np.log(first).mean() - np.log(0.5) / 2) < 0.05, "log-uniform"


@pytest.mark.slow
def test_a_recalibration_under_softer_softmaxes_goes_on_from_its_own_outcome(small: Any, tmp_path: Path) -> None:
    base = train(small(), tmp_path / "base")
    recipe = {"kind": "recalibrate", "positions": "drope", "shape": None, "qk_norm": True}
    once = train(small(**recipe, base=str(base), softmax_temperatures=[0.5, 1.0]), tmp_path / "once")
    assert "multiplied by a number drawn between 0.5 and 1" in (once / "README.md").read_text(encoding="utf-8")
    twice = train(
        small(**recipe, base=str(once), softmax_temperatures=[0.5, 1.0], temperatures_by="head"), tmp_path / "twice"
    )
    assert AutoConfig.from_pretrained(twice).attention_type == "qk_norm_nope"
    with pytest.raises(UserError, match="attention 'qk_norm_nope': set qk_norm accordingly"):
        train(small(**recipe | {"qk_norm": False}, base=str(once)), tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"softmax_temperatures": [2.0, 1.0]}, "the first is the smaller one"),
        ({"softmax_temperatures": [0.0, 1.0]}, "greater than 0"),
        ({"softmax_temperatures": [0.5, 1.0], "positions": "alibi"}, "the attention of 'alibi' has none"),
    ],
)
def test_wrong_ranges_are_said(small: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_recipe(small(**changes))
