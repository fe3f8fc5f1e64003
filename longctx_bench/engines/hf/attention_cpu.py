"""Attention on a CPU behind a KV cache: no causal mask is materialised, no keys are repeated for grouped heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from longctx_bench.methods.attention_override import override_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMPLEMENTATION = "longctx_bench_cpu"
MAX_GROUPED_TOKENS = 32
"""New tokens per row up to which the mask, and not the keys, is repeated for grouped heads."""
_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""torch's flash attention, which also returns the log-sum-exp of each query's logits."""


@contextmanager
def cpu_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use :func:`cached_attention` on a CPU; on a GPU, or with a method's own attention, nothing changes.

    Behind a cache transformers gives sdpa a mask of [new tokens x all tokens], and with a mask it repeats keys and
    values for every head of a group.
    """
    # Models that do not ask transformers for their attention read its name themselves, and do not know this one.
    replaceable = model._supports_attention_backend and model.config._attn_implementation == "sdpa"
    if model.device.type != "cpu" or not replaceable or _FLASH is None:
        yield
        return
    with override_attention(model, IMPLEMENTATION, cached_attention, skip_causal_mask):
        yield


def skip_causal_mask(**arguments: Any) -> torch.Tensor | None:
    """Return sdpa's mask, or None where it is only the causal mask of new tokens behind a cache."""
    padding_mask, kv_length = arguments.get("attention_mask"), arguments["kv_length"]
    unpadded = padding_mask is None or (padding_mask.shape[-1] == kv_length and bool(padding_mask.all()))
    at_end = arguments.get("q_offset", 0) + arguments["q_length"] == kv_length and not arguments.get("kv_offset", 0)
    causal = arguments.get("mask_function") is causal_mask_function and arguments.get("local_size") is None
    if unpadded and at_end and causal and arguments.get("allow_is_causal_skip", True):
        return None
    mask: torch.Tensor | None = sdpa_mask(**arguments)
    return mask


def cached_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend from ``[rows, heads, tokens, d]`` to ``[rows, key heads, all tokens, d]``.

    ``attention_mask`` is as :func:`skip_causal_mask` gives it: without one, the tokens are the last of all and see
    those before them.
    """
    width, kv_length = query.shape[2], key.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    behind = attention_mask is None and causal and 1 < width < kv_length
    one_mask_for_heads = attention_mask is not None and attention_mask.shape[1] == 1
    if key.shape[-1] != value.shape[-1] or kwargs.get("position_bias") is not None:
        if behind:
            attention_mask = torch.ones(width, kv_length, dtype=torch.bool, device=query.device)
            attention_mask = attention_mask.tril(kv_length - width)[None, None]
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs
        )
        return output
    if behind:
        attended = _attend_behind_cache(query, key, value, scaling)
    elif width <= MAX_GROUPED_TOKENS if one_mask_for_heads else attention_mask is None and width == 1:
        mask = None if attention_mask is None else attention_mask.repeat(1, 1, query.shape[1] // key.shape[1], 1)
        attended = functional.scaled_dot_product_attention(_group_queries(query, key), key, value, mask, scale=scaling)
        attended = attended.reshape(query.shape)
    else:
        ordered = attention_mask is None and causal
        attended = functional.scaled_dot_product_attention(
            query, key, value, attention_mask, is_causal=ordered, scale=scaling, enable_gqa=True
        )
    return attended.transpose(1, 2).contiguous(), None


def _attend_behind_cache(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attend to the cache and to the new tokens, each without a mask, and combine both by their log-sum-exps.

    torch's causal kernel skips masked blocks where queries and keys are the same tokens. Given a mask instead, it
    computes all products and reads the mask besides.
    """
    assert _FLASH is not None
    past = key.shape[2] - query.shape[2]
    cached, cached_lse = _FLASH(_group_queries(query, key), key[:, :, :past], value[:, :, :past], scale=scaling)
    new, new_lse = _FLASH(query, key[:, :, past:], value[:, :, past:], is_causal=True, scale=scaling)
    cached_weight = (cached_lse.reshape(new_lse.shape) - new_lse).sigmoid().unsqueeze(-1)
    output: torch.Tensor = new.float().lerp(cached.reshape(new.shape).float(), cached_weight).to(query.dtype)
    return output


def _group_queries(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return ``[rows, key heads, queries of the group, d]``, so that keys are read once for all heads of a group."""
    return query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1])
