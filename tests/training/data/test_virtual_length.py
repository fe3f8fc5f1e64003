"""Longer contexts simulated within the training context: keys that stand several times as keys with larger logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from longctx_bench.core.errors import UserError
from longctx_bench.methods.modeling_drope import DropeAttention
from longctx_bench.training.causal_attention import causal_attention, use_training_attention
from longctx_bench.training.data.sequence_packing import Batches, PackedText, RetrievalPool
from longctx_bench.training.models import fresh_model, without_positions
from longctx_bench.training.optimization import NextTokenLoss
from longctx_bench.training.recipe import Shape, VirtualLength, read_recipe
from longctx_bench.training.train import train

BOTH_KV_HEADS = pytest.mark.parametrize("kv_heads", [4, 2])


def _attention(kv_heads: int, qk_norm: bool) -> DropeAttention:
    shape = Shape(hidden_size=64, layers=1, heads=4, kv_heads=kv_heads, ffn=32, vocab_size=300)
    model = without_positions(fresh_model(shape, "rope", 64, 300, 0, seed=1), qk_norm)
    use_training_attention(model, "drope")
    attention: DropeAttention = model.model.layers[0].self_attn
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight.normal_(generator=torch.Generator().manual_seed(3))
    return attention


@BOTH_KV_HEADS
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("factor", [2, 3, 16])
def test_keys_that_stand_r_times_are_keys_with_ln_r_more(kv_heads: int, qk_norm: bool, factor: int) -> None:
    attention = _attention(kv_heads, qk_norm)
    hidden = torch.randn(2, 12, 64, generator=torch.Generator().manual_seed(0))
    # Tokens 3 to 7 stand once with a bias, or each of them r times in a row; the queries behind them see all of it.
    bias = torch.zeros(2, 12)
    bias[:, 3:8] = math.log(factor)
    with torch.no_grad():
        biased, _ = attention(hidden, key_bias=bias)
        repeated, _ = attention(torch.cat((hidden[:, :3], hidden[:, 3:8].repeat(1, factor, 1), hidden[:, 8:]), dim=1))
    torch.testing.assert_close(biased[:, 8:], repeated[:, -4:], atol=1e-5, rtol=0)
    torch.testing.assert_close(biased[:, :3], repeated[:, :3], atol=1e-5, rtol=0)


@BOTH_KV_HEADS
@pytest.mark.parametrize("head_dim", [16, 64, 20, 15])
def test_the_bias_is_that_of_a_float_mask_with_its_gradients(kv_heads: int, head_dim: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 24, head_dim, generator=generator, requires_grad=True)
    key = torch.randn(2, kv_heads, 24, head_dim, generator=generator, requires_grad=True)
    value = torch.randn(2, kv_heads, 24, head_dim, generator=generator, requires_grad=True)
    bias = torch.rand(2, 24, generator=generator) * math.log(16)
    module = torch.nn.Module()
    scaling = head_dim**-0.5 * 1.3
    ours, _ = causal_attention(module, query, key, value, None, scaling=scaling, key_bias=bias)
    causal = torch.full((24, 24), -torch.inf).triu(1)
    expected = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=causal + bias[:, None, None, :], scale=scaling, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    weights = torch.randn(ours.shape, generator=generator)
    gradients = torch.autograd.grad((ours * weights).sum(), (query, key, value))
    others = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    for gradient, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=0)


def test_a_bias_of_bf16_is_kept_to_four_digits() -> None:
    zeros = torch.zeros(1, 1, 2, 64, dtype=torch.bfloat16)
    value = torch.zeros_like(zeros)
    value[0, 0, 0] = 1.0
    for factor in (1.5, 3.7, 16.0):
        bias = torch.tensor([[math.log(factor), 0.0]])
        out, _ = causal_attention(torch.nn.Module(), zeros, zeros, value, None, scaling=0.125, key_bias=bias)
        share = out[0, 1, 0, 0].item()
        assert share == pytest.approx(factor / (factor + 1), rel=2**-8), "one rounding of the output to bf16"


def test_no_bias_changes_nothing() -> None:
    shape = Shape(hidden_size=32, layers=2, heads=4, kv_heads=2, ffn=48, vocab_size=300)
    rows = torch.randint(0, 300, (3, 33), generator=torch.Generator().manual_seed(0))
    model = fresh_model(shape, "nope", 32, 300, 0, seed=1)
    use_training_attention(model, "nope")
    loss = NextTokenLoss(model, "fp32")
    torch.testing.assert_close(loss(rows, key_bias=torch.zeros(3, 32)), loss(rows))
    assert abs((loss(rows, key_bias=torch.rand(3, 32)) - loss(rows)).item()) > 1e-6


def _batches(pool: RetrievalPool | None, share: float, batch: int = 400) -> Batches:
    text = PackedText([np.arange(9000, dtype=np.uint16)], 20)
    return Batches(text, batch, 7, pool, share)


def test_text_raises_spans_and_exercises_their_haystack() -> None:
    haystack = np.zeros((2, 21), dtype=np.bool_)
    haystack[0, 3:9] = haystack[1, 10:21] = True
    rows = np.zeros((2, 21), dtype=np.uint16) + np.array([[1], [2]], dtype=np.uint16)
    batches = _batches(RetrievalPool(rows, haystack, np.array([1, 4])), 0.5)
    virtual = VirtualLength(factor=16, share=0.75)
    rows, bias = batches.step(5), batches.key_bias(5, virtual)
    assert bias.shape == (400, 20)
    assert bias.dtype == np.float32
    assert np.array_equal(bias, batches.key_bias(5, virtual)), "a function of seed and step"
    assert np.array_equal(bias[100:150], batches.key_bias(5, virtual, 100, 50)), "and of nothing else"
    assert not np.array_equal(bias, batches.key_bias(6, virtual))
    logits = bias.max(axis=1)
    assert 0.65 < (logits > 0).mean() < 0.8
    assert logits.max() <= math.log(16)
    assert abs(logits[logits > 0].mean() - math.log(16) / 2) < 0.15, "uniform in the logit"
    is_exercise = rows[:, 0] == rows[:, 1]
    for row, biases, logit in zip(rows[is_exercise], bias[is_exercise], logits[is_exercise], strict=True):
        assert np.array_equal(biases > 0, haystack[row[0] - 1, :20] & (logit > 0))
    for biases in bias[~is_exercise]:
        assert len(set(biases.tolist())) <= 2
        assert (np.diff(np.concatenate(([0], biases > 0, [0])).astype(int)) == 1).sum() <= 3
    spared = batches.key_bias(5, virtual.model_copy(update={"several_values": False}))
    asks_for_several = is_exercise & (rows[:, 0] == 2)
    assert asks_for_several.sum() > 50
    assert not spared[asks_for_several].any()
    assert np.array_equal(spared[~asks_for_several], bias[~asks_for_several]), "the others draw what they drew"


def test_random_crops_cut_each_pass_at_other_places() -> None:
    text = PackedText([np.arange(95, dtype=np.uint16), np.arange(200, 263, dtype=np.uint16)], 20)
    fixed, random = (Batches(text, len(text), 3, random_crops=crops) for crops in (False, True))
    starts = [sorted(batches.step(epoch)[:, 0].tolist()) for batches in (fixed, random) for epoch in (0, 1)]
    assert starts[0] == starts[1]
    assert len({tuple(each) for each in starts}) == 3
    for epoch in range(30):
        rows = random.step(epoch)
        assert (np.diff(rows) == 1).all(), "whole rows of one document"
        assert len(np.unique(rows)) >= 95 + 63 - 2 * 20, "less than a row of each array is left out"


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(small: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from longctx_bench.training.trainer import Trainer

    base = train(small(), tmp_path / "base")
    recipe = small(
        kind="recalibrate",
        positions="drope",
        shape=None,
        base=str(base),
        virtual_length={"factor": 8, "share": 0.5},
        tokens=6 * 256,
    )
    whole = train(recipe, tmp_path / "whole")
    cut = Trainer(read_recipe(recipe), tmp_path / "cut")
    save = cut._save_state

    def save_and_stop() -> None:
        save()
        cut.stopping = True

    cut._save_state = save_and_stop  # type: ignore[method-assign]
    cut.train()
    assert (tmp_path / "cut" / "state").is_dir()
    train(recipe, tmp_path / "cut")
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    card = (whole / "README.md").read_text(encoding="utf-8")
    assert "virtual length: 50% of the sequences" in card
    assert "not part of the DroPE paper's recipe" in card
    plain = train(
        small(kind="recalibrate", positions="drope", shape=None, base=str(base), tokens=6 * 256), tmp_path / "plain"
    )
    assert "virtual" not in (plain / "README.md").read_text(encoding="utf-8")
    other = load_file(plain / "model.safetensors")
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"virtual_length": {"factor": 1.0}}, "greater than 1"),
        ({"virtual_length": {"factor": 4, "share": 0}}, "greater than 0"),
        ({"virtual_length": {"factors": 4}}, "factors"),
        ({"virtual_length": {"factor": 4}}, "'rope'"),
        ({"virtual_length": {"factor": 4}, "positions": "alibi"}, "'alibi'"),
        ({"crops": "some"}, "'fixed' or 'random'"),
    ],
)
def test_wrong_options_are_said(small: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_recipe(small(**changes))


def test_runs_from_before_these_options_resume(small: Any) -> None:
    before = read_recipe(small(crops="fixed", retrieval_exercises="one-question", residual="bf16")).identity()
    assert not {"crops", "retrieval_exercises", "virtual_length", "softmax_temperatures", "temperatures_by"} & set(
        before
    )
    now = read_recipe(small(positions="nope", virtual_length={"factor": 4})).identity()
    assert now["virtual_length"] == {"factor": 4.0, "share": 0.75}
    assert now["crops"] == "random"
    json.dumps(now)


def test_by_distance_a_row_stands_for_r_times_its_length_and_neighbours_for_themselves() -> None:
    batches = Batches(PackedText([np.arange(90_000) % 65_536], 2048), 40, 7)
    virtual = VirtualLength(factor=16, share=0.75, by="distance")
    bias = batches.key_bias(3, virtual)
    assert np.array_equal(bias, batches.key_bias(3, virtual))
    assert np.array_equal(bias[10:20], batches.key_bias(3, virtual, 10, 10))
    logits = np.log(np.exp(bias - bias[:, -1:]).mean(axis=1, dtype=np.float64))
    assert (bias >= 0).all()
    assert 0.5 < (logits > 1e-3).mean() < 0.95
    assert logits.max() <= math.log(16) + 2e-3
    spans = batches.key_bias(3, VirtualLength(factor=16, share=0.75))
    drawn = spans.max(axis=1)
    # The same draws: what a query at the end sees is r times the row.
    np.testing.assert_allclose(logits[drawn > 0], drawn[drawn > 0], atol=5e-3)
    row = bias[int(logits.argmax())]
    steps = np.diff(row)
    np.testing.assert_allclose(steps, steps[0], atol=1e-5, err_msg="of the distance alone, whatever the query's place")
    assert np.exp(-steps[0]) < 1.01, "neighbours stand for themselves"


def test_by_distance_an_exercises_needles_stand_once_for_its_questions() -> None:
    haystack = np.zeros((1, 21), dtype=np.bool_)
    haystack[0, 2:12] = True
    haystack[0, 5:7] = False
    pool = RetrievalPool(np.full((1, 21), 1, dtype=np.uint16), haystack, np.ones(1, dtype=np.uint8))
    bias = _batches(pool, 1.0, 50).key_bias(1, VirtualLength(factor=16, share=1.0, by="distance"))
    assert (bias[:, 0] > 0).all()
    for row in bias:
        needles, questions = row[[0, 1, 5, 6]], row[12]
        np.testing.assert_allclose(needles, questions, rtol=1e-6)
        assert (row[[2, 3, 4, 7, 8, 9, 10, 11]] > questions).all()
        assert (np.diff(row[12:]) < 0).all(), "what follows is ordinary text"


def test_runs_by_spans_resume_as_before_there_was_another_way(small: Any) -> None:
    spans = read_recipe(small(positions="nope", virtual_length={"factor": 4, "by": "spans"}))
    distance = read_recipe(small(positions="nope", virtual_length={"factor": 4, "by": "distance"}))
    assert spans.identity()["virtual_length"] == {"factor": 4.0, "share": 0.75}
    one = read_recipe(small(positions="nope", virtual_length={"factor": 4, "several_values": False}))
    assert one.identity()["virtual_length"] == {"factor": 4.0, "share": 0.75, "several_values": False}
    assert distance.identity()["virtual_length"]["by"] == "distance"
    with pytest.raises(UserError, match="'spans' or 'distance'"):
        read_recipe(small(positions="nope", virtual_length={"by": "chance"}))
