from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.rnope_swa import RNoPESWA
from longctx_bench.training.models import fresh_model
from longctx_bench.training.recipe import Shape

SHAPE = Shape(hidden_size=32, layers=4, heads=2, kv_heads=2, ffn=64, vocab_size=300, window=4)


def test_three_windows_with_rope_then_one_full_layer_without(tmp_path: Path) -> None:
    fresh_model(SHAPE, "rnope-swa", 32, 300, 0, seed=0).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    attentions = [layer.self_attn for layer in model.model.layers]
    assert [attention.sliding_window for attention in attentions] == [4, 4, 4, None]
    assert [bool(attention.use_rope) for attention in attentions] == [True, True, True, False]


def test_a_window_hides_what_is_behind_it() -> None:
    model = fresh_model(SHAPE.model_copy(update={"layers": 1}), "rnope-swa", 32, 300, 0, seed=0).eval()
    ids = torch.arange(10, 30)[None]
    changed = ids.clone()
    changed[0, 0] = 7
    with torch.no_grad():
        same = torch.isclose(model(ids).logits, model(changed).logits, atol=1e-6).all(-1)[0]
    assert same.tolist() == [False] * 4 + [True] * 16


def test_only_the_length_is_overridden() -> None:
    base = BaseModelInfo("rnope-swa-tiny", 512, {})
    assert RNoPESWA().model_overrides(base, 4096) == {"max_position_embeddings": 4096}
    assert RNoPESWA().model_overrides(base, 128) == {"max_position_embeddings": 512}
    assert RNoPESWA.needs_checkpoint
