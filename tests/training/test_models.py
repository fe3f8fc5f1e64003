from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from longctx_bench.core.errors import UserError
from longctx_bench.methods.alibi import ALiBi
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.training.causal_attention import use_training_attention
from longctx_bench.training.checkpoint_export import average_checkpoints, save_model
from longctx_bench.training.lora import add_adapters, merge_adapters
from longctx_bench.training.mfu import flops_per_token
from longctx_bench.training.models import base_folder, fresh_model, starting_model, without_positions
from longctx_bench.training.optimization import NextTokenLoss
from longctx_bench.training.recipe import Lora, Shape, read_recipe

SHAPE = Shape(hidden_size=32, layers=4, heads=4, kv_heads=2, ffn=64, vocab_size=300, window=8)
IDS = torch.arange(48).reshape(2, 24) * 5 % 300


def fresh(positions: str) -> Any:
    return fresh_model(SHAPE, positions, 64, 300, 0, seed=0).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("positions", ["rope", "nope", "alibi", "rnope-swa", "drope"])
def test_training_attention_is_the_methods_own(positions: str) -> None:
    model = without_positions(fresh("rope"), qk_norm=True).eval() if positions == "drope" else fresh(positions)
    if positions == "alibi":
        with ALiBi().patch(model, BaseModelInfo("x", 64, {}), 64):
            expected = logits(model)
    else:
        expected = logits(model)
    use_training_attention(model, positions)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)


def test_the_loss_is_the_mean_next_token_cross_entropy() -> None:
    model = fresh("rope")
    expected = model(IDS, labels=IDS).loss
    torch.testing.assert_close(NextTokenLoss(model, "fp32")(IDS), expected)


@pytest.mark.parametrize("residual", ["bf16", "fp32"])
def test_the_residual_stream_has_the_precision_asked_for(residual: str) -> None:
    model = fresh("rope")
    seen: list[torch.dtype] = []
    hook = model.model.layers[-1].register_forward_hook(
        lambda module, given, out: seen.append((out[0] if isinstance(out, tuple) else out).dtype)
    )
    loss = NextTokenLoss(model, "bf16", residual)(IDS)
    hook.remove()
    assert seen == [{"bf16": torch.bfloat16, "fp32": torch.float32}[residual]]
    torch.testing.assert_close(loss, NextTokenLoss(model, "fp32")(IDS), atol=0.05, rtol=0.02)


def test_dropping_positions_keeps_the_weights() -> None:
    base = fresh("rope")
    dropped = without_positions(base, qk_norm=True)
    mine, theirs = base.state_dict(), dropped.state_dict()
    new = set(theirs) - set(mine)
    assert new == {
        f"model.layers.{layer}.self_attn.{norm}.weight" for layer in range(4) for norm in ("q_norm", "k_norm")
    }
    assert all(torch.equal(theirs[name], mine[name]) for name in mine)
    assert all(torch.equal(theirs[name], torch.ones_like(theirs[name])) for name in new)


def test_without_norms_it_is_the_base_read_without_positions() -> None:
    base, bare = fresh("rope"), fresh("nope")
    bare.load_state_dict(base.state_dict())
    torch.testing.assert_close(logits(without_positions(base, qk_norm=False).eval()), logits(bare))


def test_qwen2_keeps_its_biases() -> None:
    config = Qwen2Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    base = Qwen2ForCausalLM(config)
    dropped = without_positions(base, qk_norm=True)
    assert dropped.config.model_type == "qwen2_drope"
    assert torch.equal(
        dropped.state_dict()["model.layers.1.self_attn.q_proj.bias"], base.model.layers[1].self_attn.q_proj.bias
    )


@pytest.mark.parametrize("positions", ["rope", "nope", "alibi", "rnope-swa", "drope"])
def test_saved_models_load_and_give_the_same_logits(positions: str, tokenizer: Any, tmp_path: Path) -> None:
    model = without_positions(fresh("rope"), qk_norm=True).eval() if positions == "drope" else fresh(positions)
    for parameter in model.parameters():
        # The parameters alone: transformers keeps the rotary frequencies in fp32.
        parameter.data = parameter.data.bfloat16()
    expected = logits(model)
    use_training_attention(model, positions)
    save_model(model, tokenizer, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert loaded.dtype == torch.bfloat16
    assert loaded.config._attn_implementation == "sdpa"
    assert torch.equal(logits(loaded), expected)
    average_checkpoints([tmp_path / "model", tmp_path / "model"], tmp_path / "mean")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "mean").eval()), expected)


def test_adapters_train_little_and_merge_into_plain_layers() -> None:
    model = without_positions(fresh("rope"), qk_norm=True)
    names = set(model.state_dict())
    add_adapters(model, Lora(rank=2, alpha=4))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or "norm" in name for name in trained)
    assert any("q_norm" in name for name in trained)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.01)
    expected = logits(model.eval())
    merge_adapters(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)


def test_flops_count_the_weights_and_half_the_attention() -> None:
    model = fresh("rope")
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2)
    assert flops_per_token(model, 24) == 6 * matrices + 12 * 32 * 4 * 12


@pytest.mark.parametrize(
    ("positions", "changes", "said"),
    [
        ("nope", {}, "no rotary positions"),
        ("rnope-swa", {}, "is a 'smollm3'"),
        ("rope", {"sequence_length": 128}, "more than the 64"),
    ],
)
def test_a_base_that_cannot_be_continued_is_one_clear_line(
    small: Any, tokenizer: Any, tmp_path: Path, positions: str, changes: dict[str, Any], said: str
) -> None:
    save_model(fresh(positions), tokenizer, tmp_path / "base")
    base = str(tmp_path / "base")
    recipe = read_recipe(small(kind="recalibrate", positions="drope", base=base, shape=None, **changes))
    with pytest.raises(UserError, match=said):
        starting_model(recipe, tokenizer)


@pytest.mark.parametrize(("kind", "positions"), [("control", "rope"), ("recalibrate", "drope")])
def test_what_continues_a_base_reads_as_far_as_it_was_trained(
    small: Any, tokenizer: Any, tmp_path: Path, kind: str, positions: str
) -> None:
    base = fresh_model(SHAPE, "rope", 64, len(tokenizer), 0, seed=0)
    save_model(base, tokenizer, tmp_path / "base")
    theta = {"rope_theta": 500.0} if kind == "control" else {}
    changes = {"base": str(tmp_path / "base"), "shape": None, "sequence_length": 32, **theta}
    model = starting_model(read_recipe(small(kind=kind, positions=positions, **changes)), tokenizer)
    assert model.config.max_position_embeddings == 32
    if theta:
        assert model.config.rope_parameters == {"rope_type": "default", "rope_theta": 500.0}
        frequencies = dict(model.named_buffers())["model.rotary_emb.inv_freq"]
        assert frequencies[1].item() == pytest.approx(500.0 ** (-2 / 8))


def test_a_base_may_be_a_listed_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longctx_bench.training.models.checkpoint_folder", lambda source: tmp_path / source.member)
    assert base_folder("smollm2-135m").name == "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_base_that_is_nowhere_is_one_clear_line(small: Any, tokenizer: Any) -> None:
    recipe = read_recipe(small(kind="control", base="rope-tinny", shape=None))
    with pytest.raises(UserError, match=r"no folder with a config.json.*\(owner/name\)$"):
        starting_model(recipe, tokenizer)


def test_a_first_stage_that_is_not_there_is_named_with_the_command_that_trains_it() -> None:
    with pytest.raises(UserError, match="train it first: `longctx-bench train drope-tiny-first`, or name its folder"):
        base_folder("results/models/drope-tiny-first")
