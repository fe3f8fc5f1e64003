"""The embedded checkpoints: their sizes, and the same logits here and in plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import longctx_bench
import longctx_bench.methods.modeling_drope  # the DroPE model type
from longctx_bench.core.sources import shipped_checkpoint_folder
from longctx_bench.methods.alibi import slopes
from longctx_bench.registry import Registry
from longctx_bench.training.recipe import read_recipe

MEMBERS = ["rope", "control", "drope", "drope-plain", "nope", "nope-virtual", "alibi", "rnope-swa"]
IDS = torch.randint(26, 5000, (1, 300), generator=torch.Generator().manual_seed(3))


def folder(member: str) -> Path:
    return shipped_checkpoint_folder(f"{member}-tiny")


@torch.inference_mode()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("member", MEMBERS)
def test_a_member_is_small_and_says_what_it_is(member: str) -> None:
    weights = folder(member) / "model.safetensors"
    assert weights.stat().st_size <= 20_000_000
    model = AutoModelForCausalLM.from_pretrained(folder(member))
    assert model.dtype == torch.bfloat16
    assert sum(weight.numel() for weight in model.parameters()) <= 10_000_000
    card = (folder(member) / "README.md").read_text()
    for fact in ("tokens seen", "validation loss", "Seed", "Command", "commit", "Not made for"):
        assert fact in card
    assert read_recipe(f"{member}-tiny").description in card
    assert (folder(member) / "tokenizer.json").read_bytes() == (folder("rope") / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("member", ["rope", "nope", "rnope-swa", "drope"])
def test_logits_are_those_of_plain_transformers(member: str) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder(member), dtype=torch.float32).eval()
    ours, _ = longctx_bench.load(f"{member}-tiny", dtype="float32", device="cpu")
    assert torch.equal(logits(ours), logits(plain))


def test_alibi_adds_its_penalties_to_plain_attention() -> None:
    plain = AutoModelForCausalLM.from_pretrained(
        folder("alibi"), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    heads, length = plain.config.num_attention_heads, IDS.shape[1]
    place = torch.arange(length)
    distance = place[:, None] - place[None, :]
    bias = -torch.tensor(slopes(heads))[:, None, None] * distance
    bias = bias.masked_fill(distance < 0, torch.finfo(torch.float32).min)[None]
    with torch.inference_mode():
        expected = plain(IDS, attention_mask=bias).logits
    ours, _ = longctx_bench.load("alibi-tiny", dtype="float32", device="cpu")
    assert torch.allclose(logits(ours), expected, atol=1e-4)


def test_the_temperature_is_the_calibrated_one_beyond_the_training_context() -> None:
    fits = json.loads((folder("drope") / "calibration.json").read_text())["temperature"]
    registry = Registry()
    base = longctx_bench.methods.base.BaseModelInfo("tiny", 512, {})
    for name, objective in (("drope-uniform", "retrieval"), ("drope-perplexity", "perplexity")):
        tuning = registry.variant(f"{name}-tiny").method.applied_scalar(base, 2048)
        assert tuning is not None
        assert (tuning.value, tuning.source) == (fits[objective]["table"]["4"], objective)
    model, _ = longctx_bench.load("drope-uniform-tiny", length=2048, dtype="float32", device="cpu")
    assert model.model.layers[0].self_attn.scaling == pytest.approx(fits["retrieval"]["table"]["4"] / 8)
    by_head, _ = longctx_bench.load("drope-tiny", length=2048, dtype="float32", device="cpu")
    plain, _ = longctx_bench.load("drope-tiny", length=512, dtype="float32", device="cpu")
    gains = [model.model.layers[0].self_attn.q_norm.weight for model in (by_head, plain)]
    first = [float(value) for value in fits["heads"]["table"]["4"][0].split()]
    assert (gains[0] / gains[1]).reshape(5, 64)[:, 0].tolist() == pytest.approx(first, rel=1e-5)


@pytest.mark.slow
def test_drope_finds_needles_beyond_its_training_context_where_rope_finds_none(tmp_path: Path) -> None:
    frame = longctx_bench.run(
        "rope-tiny,drope-tiny", "niah", scale=[1, 2], limit=11, out=tmp_path, dtype="float32", device="cpu"
    )
    found = {(row.method, row.scale): row.score for row in frame.itertuples()}
    assert found["rope", 1] >= 0.9
    assert found["drope", 1] >= 0.9
    assert found["rope", 2] <= 0.1
    assert found["drope", 2] >= 0.8
    assert not any("/" in str(value) for value in frame["model"])
    assert str(Path.cwd()) not in (tmp_path / "runs/tiny/drope/niah/512/cell.json").read_text()
