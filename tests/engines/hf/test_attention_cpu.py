"""Attention behind a cache on a CPU: what sdpa reads through a mask, read without one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, MistralConfig, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from longctx_bench.engines.hf import attention_cpu as module_under_test
from longctx_bench.engines.hf.attention_cpu import (
    IMPLEMENTATION,
    MAX_GROUPED_TOKENS,
    cached_attention,
    cpu_attention,
    skip_causal_mask,
)
from longctx_bench.engines.hf.loglikelihood import score_continuations, score_suffixes
from longctx_bench.methods.alibi import ALiBi

ROWS, HEADS, THERE, SIZE = 3, 6, 77, 8


def _tensors(width: int, groups: int = 2, there: int = THERE) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(width)
    # Keys and values are views of longer buffers, as in the cache.
    keys, values = (torch.randn(ROWS, groups, there + 5, SIZE)[:, :, :there] for _ in range(2))
    return torch.randn(ROWS, width, HEADS, SIZE).transpose(1, 2), keys, values


def _module(groups: int = 2, causal: bool = True) -> Any:
    return SimpleNamespace(num_key_value_groups=HEADS // groups, is_causal=causal)


def _ordered(width: int, there: int = THERE) -> torch.Tensor:
    return torch.ones(width, there, dtype=torch.bool).tril(there - width)[None, None]


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("width", [1, 2, MAX_GROUPED_TOKENS, MAX_GROUPED_TOKENS + 9, THERE])
def test_without_a_mask_tokens_see_what_stands_before_them(width: int, groups: int) -> None:
    query, key, value = _tensors(width, groups)
    expected, _ = sdpa_attention_forward(_module(groups), query, key, value, _ordered(width), scaling=0.3)
    found, _ = cached_attention(_module(groups), query, key, value, None, scaling=0.3)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous()


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kind", ["holes", "added", "by head"])
@pytest.mark.parametrize("width", [1, 5, MAX_GROUPED_TOKENS + 9])
def test_a_mask_says_what_it_says_to_sdpa(width: int, kind: str, groups: int) -> None:
    query, key, value = _tensors(width, groups)
    mask = torch.rand(ROWS, HEADS if kind == "by head" else 1, width, THERE) < 0.7
    mask[..., 0] = True
    if kind == "added":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    expected, _ = sdpa_attention_forward(_module(groups), query, key, value, mask)
    found, _ = cached_attention(_module(groups), query, key, value, mask)
    torch.testing.assert_close(found, expected)


def test_what_the_kernel_does_not_know_is_left_to_sdpa() -> None:
    query, key, value = _tensors(9)
    expected, _ = sdpa_attention_forward(_module(), query, key, value[..., :5], _ordered(9))
    found, _ = cached_attention(_module(), query, key, value[..., :5], None)
    torch.testing.assert_close(found, expected)
    bias = torch.randn(1, HEADS, 9, THERE)
    expected, _ = sdpa_attention_forward(_module(), query, key, value, _ordered(9), position_bias=bias)
    found, _ = cached_attention(_module(), query, key, value, None, position_bias=bias)
    torch.testing.assert_close(found, expected)
    both_ways, _ = sdpa_attention_forward(_module(causal=False), query, key, value, None)
    found, _ = cached_attention(_module(causal=False), query, key, value, None)
    torch.testing.assert_close(found, both_ways)


def test_half_precision_loses_no_more_than_its_rounding() -> None:
    query, key, value = (each.bfloat16() for each in _tensors(40, there=400))
    exact, _ = sdpa_attention_forward(_module(), query.double(), key.double(), value.double(), _ordered(40, 400))
    found, _ = cached_attention(_module(), query, key, value, None)
    torch.testing.assert_close(found.double(), exact, atol=0.005, rtol=0.01)


def test_only_a_mask_that_says_no_more_than_the_order_is_left_out() -> None:
    plain: dict[str, Any] = {
        "batch_size": 1, "q_length": 3, "kv_length": 8, "q_offset": 5, "mask_function": causal_mask_function,
        "attention_mask": None, "allow_is_causal_skip": True,
    }  # fmt: skip
    assert skip_causal_mask(**plain) is None
    assert skip_causal_mask(**plain | {"attention_mask": torch.ones(1, 8, dtype=torch.bool)}) is None
    told = torch.ones(1, 8, dtype=torch.bool)
    told[0, 2] = False
    for change in (
        {"attention_mask": told},
        {"mask_function": bidirectional_mask_function},
        {"local_size": 4},
        {"allow_is_causal_skip": False},
        {"q_offset": 4},
    ):
        mask = skip_causal_mask(**plain | change)
        assert mask is not None
        assert mask.shape == (1, 1, 3, 8)


SHAPE = {
    "vocab_size": 60, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2,
}  # fmt: skip


def _model(config: PretrainedConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(
    "config", [LlamaConfig(**SHAPE), MistralConfig(**SHAPE, sliding_window=9)], ids=["whole", "window"]
)
def test_a_model_reads_behind_a_cache_as_it_reads_whole(config: PretrainedConfig, rows: int) -> None:
    model = _model(config)
    ids = torch.randint(0, 60, (rows, 60))
    cache = DynamicCache(config=config)
    found = []
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
        for part in ids.split([20, 35, 4, 1], dim=1):
            with cpu_attention(model):
                assert model.config._attn_implementation == IMPLEMENTATION
                found.append(model(part, past_key_values=cache).logits)
    torch.testing.assert_close(torch.cat(found, dim=1), expected)
    assert model.config._attn_implementation == "sdpa"


def test_no_mask_is_built_behind_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(LlamaConfig(**SHAPE))
    masks = []

    def noted(*given: Any, **more: Any) -> Any:
        masks.append(given[4])
        return cached_attention(*given, **more)

    monkeypatch.setattr(module_under_test, "cached_attention", noted)
    cache, ids = DynamicCache(config=model.config), torch.randint(0, 60, (1, 40))
    told = torch.ones(1, 40, dtype=torch.long)
    with torch.inference_mode(), cpu_attention(model):
        model(ids[:, :30], past_key_values=cache)
        model(ids[:, 30:35], past_key_values=cache)
        model(ids[:, 35:], past_key_values=cache, attention_mask=told)
    assert masks == [None] * 6


def test_likelihoods_of_branches_are_those_of_whole_rows() -> None:
    model = _model(LlamaConfig(**SHAPE))
    prefix = torch.randint(0, 60, (70,)).tolist()
    continuations = [torch.randint(0, 60, (size,)).tolist() for size in (3, 1, 9)]
    whole = score_suffixes(model, [prefix + own for own in continuations], [len(own) for own in continuations])
    for one, other in zip(score_continuations(model, prefix, continuations), whole, strict=True):
        torch.testing.assert_close(one.losses, other.losses)


def test_other_attentions_and_devices_keep_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(name: str = "sdpa", device: str = "cpu", asks: bool = True) -> bool:
        config = SimpleNamespace(_attn_implementation=name)
        own: Any = SimpleNamespace(config=config, device=torch.device(device), _supports_attention_backend=asks)
        with cpu_attention(own):
            return bool(own.config._attn_implementation == name)

    assert not kept()
    assert kept("eager")
    assert kept(device="cuda")
    assert kept(asks=False), "models that read the attention's name themselves would not know this one"
    monkeypatch.setattr(module_under_test, "_FLASH", None)
    assert kept(), "a torch without the kernel"


def test_a_methods_attention_is_kept() -> None:
    model = _model(LlamaConfig(**SHAPE))
    with ALiBi().patch(model, SimpleNamespace(), 64):  # type: ignore[arg-type]
        name = model.config._attn_implementation
        with cpu_attention(model):
            assert model.config._attn_implementation == name != IMPLEMENTATION
