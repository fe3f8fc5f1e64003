from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, LlamaConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from longctx_bench.engines.few_queries import IMPLEMENTATION, few_queries, few_queries_attention

ROWS, HEADS, GROUPS, THERE, SIZE = 3, 6, 2, 37, 8


def _tensors(width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(width)
    # Keys and values are views of longer buffers, as in the cache.
    keys, values = (torch.randn(ROWS, GROUPS, THERE + 5, SIZE)[:, :, :THERE] for _ in range(2))
    return torch.randn(ROWS, width, HEADS, SIZE).transpose(1, 2), keys, values


@pytest.mark.parametrize(
    ("width", "kind"), [(1, "none"), (1, "holes"), (1, "added"), (4, "holes"), (4, "added"), (9, "holes"), (9, "none")]
)
def test_equals_sdpa(width: int, kind: str) -> None:
    query, key, value = _tensors(width)
    module: Any = SimpleNamespace(num_key_value_groups=HEADS // GROUPS, is_causal=True)
    mask = None
    if kind != "none":
        mask = torch.rand(ROWS, 1, width, THERE) < 0.7
        mask[..., 0] = True
    if kind == "added":
        assert mask is not None
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=0.3)
    found, _ = few_queries_attention(module, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()


def test_half_precision_is_as_exact_as_the_fused_kernel() -> None:
    query, key, value = (each.bfloat16() for each in _tensors(1))
    module: Any = SimpleNamespace(num_key_value_groups=HEADS // GROUPS, is_causal=True)
    exact, _ = sdpa_attention_forward(module, query.double(), key.double(), value.double(), None)
    found, _ = few_queries_attention(module, query, key, value, None)
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0.02)


def test_a_models_next_token_is_the_same_and_its_attention_is_put_back() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=60, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    ids = torch.randint(0, 60, (3, 20))
    told = torch.ones(3, 21, dtype=torch.long)
    told[1, :4] = 0
    told[2, 9:12] = 0
    with torch.no_grad():
        logits = []
        for name in ("sdpa", IMPLEMENTATION):
            AttentionInterface.register(IMPLEMENTATION, few_queries_attention)
            AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
            model.config._attn_implementation = "sdpa"
            past = model(ids, attention_mask=told[:, :20]).past_key_values
            model.config._attn_implementation = name
            logits.append(model(ids[:, :1], attention_mask=told, past_key_values=past).logits)
        torch.testing.assert_close(logits[1], logits[0])
    model.config._attn_implementation = "sdpa"
    with few_queries(model):
        assert model.config._attn_implementation == "sdpa", "a CPU keeps its kernels"


def test_models_that_read_the_attentions_name_themselves_keep_theirs() -> None:
    own: Any = SimpleNamespace(
        config=SimpleNamespace(_attn_implementation="sdpa"),
        device=torch.device("cuda"),
        _supports_attention_backend=False,
    )
    with few_queries(own):
        assert own.config._attn_implementation == "sdpa"
    own._supports_attention_backend = True
    with few_queries(own):
        assert own.config._attn_implementation == IMPLEMENTATION
    assert own.config._attn_implementation == "sdpa"
