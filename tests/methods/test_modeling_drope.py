"""Sakana's DroPE format against a forward pass written here in plain PyTorch, full and token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache

from longctx_bench.core.errors import UserError
from longctx_bench.methods.modeling_drope import ATTENTION_TYPES, DROPE_MODEL_TYPES, LlamaDropeConfig

HEADS, KV_HEADS, HEAD_DIM, EPS = 4, 2, 12, 1e-6


def save(folder: Path, model_type: str, attention_type: str, softmax_scale: float | None) -> Path:
    """Save a random checkpoint as transformers 4.56 wrote them: top-level rope_theta, remote code named."""
    config_class, model_class = DROPE_MODEL_TYPES[model_type]
    torch.manual_seed(3)
    config: Any = config_class(
        hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, head_dim=HEAD_DIM, vocab_size=160, rms_norm_eps=EPS, initializer_range=0.2,
        attention_type=attention_type, softmax_scale=softmax_scale,
    )  # fmt: skip
    model = model_class(config)
    for name, weight in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    written.pop("rope_parameters")
    written.pop("rope_theta", None)
    written |= {"rope_theta": 10000.0, "rope_scaling": None, "transformers_version": "4.56.0"}
    written["auto_map"] = {"AutoConfig": "remote.Config", "AutoModelForCausalLM": "remote.Model"}
    (folder / "config.json").write_text(json.dumps(written))
    return folder


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight


def plain_forward(weights: dict[str, torch.Tensor], config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """Logits [batch, tokens, vocabulary] of a Llama or Qwen2 without positions, from its weights alone."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    hidden = weights["model.embed_tokens.weight"][ids]
    batch, tokens = ids.shape
    scale = config["softmax_scale"] or HEAD_DIM**-0.5
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        normed = rms(hidden, weights[f"{prefix}.input_layernorm.weight"])
        query, key = linear(f"{prefix}.self_attn.q_proj", normed), linear(f"{prefix}.self_attn.k_proj", normed)
        if f"{prefix}.self_attn.q_norm.weight" in weights:
            query = rms(query, weights[f"{prefix}.self_attn.q_norm.weight"])
        if f"{prefix}.self_attn.k_norm.weight" in weights:
            key = rms(key, weights[f"{prefix}.self_attn.k_norm.weight"])
        value = linear(f"{prefix}.self_attn.v_proj", normed)
        query = query.view(batch, tokens, HEADS, HEAD_DIM)
        key = key.view(batch, tokens, KV_HEADS, HEAD_DIM).repeat_interleave(HEADS // KV_HEADS, dim=2)
        value = value.view(batch, tokens, KV_HEADS, HEAD_DIM).repeat_interleave(HEADS // KV_HEADS, dim=2)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * scale
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(future, float("-inf")).softmax(-1), value)
        hidden = hidden + linear(f"{prefix}.self_attn.o_proj", mixed.reshape(batch, tokens, -1))
        normed = rms(hidden, weights[f"{prefix}.post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(linear(f"{prefix}.mlp.gate_proj", normed))
        hidden = hidden + linear(f"{prefix}.mlp.down_proj", gate * linear(f"{prefix}.mlp.up_proj", normed))
    return linear("lm_head", rms(hidden, weights["model.norm.weight"]))


@pytest.mark.parametrize("softmax_scale", [None, 0.45])
@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
@pytest.mark.parametrize("model_type", DROPE_MODEL_TYPES)
def test_logits_equal_a_plain_forward_pass(
    tmp_path: Path, model_type: str, attention_type: str, softmax_scale: float | None
) -> None:
    folder = save(tmp_path / "model", model_type, attention_type, softmax_scale)
    weights = load_file(folder / "model.safetensors")
    norms = {"nope": [], "qk_norm_nope": ["k_norm", "q_norm"], "q_norm_nope": ["q_norm"], "k_norm_nope": ["k_norm"]}
    found = sorted(name.split(".")[-2] for name in weights if name.endswith(("q_norm.weight", "k_norm.weight")))
    assert found == sorted(3 * norms[attention_type])
    config = json.loads((folder / "config.json").read_text())
    ids = torch.randint(0, 160, (2, 40), generator=torch.Generator().manual_seed(4))
    expected = plain_forward(weights, config, ids)

    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model.eval()
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, expected, atol=1e-4, rtol=0)
        cache = DynamicCache(config=model.config)
        steps = [model(ids[:, :20], past_key_values=cache).logits]
        steps += [model(ids[:, place : place + 1], past_key_values=cache).logits for place in range(20, 40)]
        assert cache.get_seq_length() == 40
        assert torch.allclose(torch.cat(steps, dim=1), expected, atol=1e-4, rtol=0)


def test_an_unknown_attention_type_is_refused() -> None:
    with pytest.raises(UserError, match="attention_type 'rope'.*nope, qk_norm_nope"):
        LlamaDropeConfig(attention_type="rope")
