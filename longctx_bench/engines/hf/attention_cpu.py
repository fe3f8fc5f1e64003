"""Attention to a cache on a CPU: no mask that says no more than the order of tokens, no keys copied for each head."""

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
FEW = 32
"""New tokens of a row up to which a mask is repeated for heads that share keys."""
_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
"""torch's kernel, which besides what was read gives the logarithm of what the weights were divided by."""


@contextmanager
def cpu_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model on a CPU attend so inside; on a GPU, or where a method brought its own attention, nothing changes.

    transformers asks sdpa for a mask of [new tokens x all tokens] behind a cache, and copies keys and values for every
    head that shares them wherever there is a mask.
    """
    # Models that do not ask transformers for their attention read the name themselves, and would not know this one.
    asks = getattr(model, "_supports_attention_backend", False)
    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa" or not asks or _FLASH is None:
        yield
        return
    with override_attention(model, IMPLEMENTATION, cached_attention, no_mask_behind):
        yield


def no_mask_behind(**asked: Any) -> torch.Tensor | None:
    """Return sdpa's mask, or None where it would only say that tokens behind a cache see it and those before them."""
    told, there = asked.get("attention_mask"), asked["kv_length"]
    whole = told is None or (told.shape[-1] == there and bool(told.all()))
    ends = asked.get("q_offset", 0) + asked["q_length"] == there and not asked.get("kv_offset", 0)
    plain = asked.get("mask_function") is causal_mask_function and asked.get("local_size") is None
    if whole and ends and plain and asked.get("allow_is_causal_skip", True):
        return None
    mask: torch.Tensor | None = sdpa_mask(**asked)
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

    ``attention_mask`` is as :func:`no_mask_behind` gives it: without one, the tokens are the last of all and see what
    stands before them.
    """
    width, there = query.shape[2], key.shape[2]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    behind = attention_mask is None and causal and 1 < width < there
    one_for_heads = attention_mask is not None and attention_mask.shape[1] == 1
    if key.shape[-1] != value.shape[-1] or kwargs.get("position_bias") is not None:
        if behind:
            attention_mask = torch.ones(width, there, dtype=torch.bool, device=query.device).tril(there - width)
            attention_mask = attention_mask[None, None]
        mixed: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **kwargs
        )
        return mixed
    if behind:
        read = _behind(query, key, value, scaling)
    elif width <= FEW if one_for_heads else attention_mask is None and width == 1:
        mask = None if attention_mask is None else attention_mask.repeat(1, 1, query.shape[1] // key.shape[1], 1)
        read = functional.scaled_dot_product_attention(_side_by_side(query, key), key, value, mask, scale=scaling)
        read = read.reshape(query.shape)
    else:
        ordered = attention_mask is None and causal
        read = functional.scaled_dot_product_attention(
            query, key, value, attention_mask, is_causal=ordered, scale=scaling, enable_gqa=True
        )
    return read.transpose(1, 2).contiguous(), None


def _behind(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Attend to what was read before and to the new tokens, each without a mask, and weigh the two.

    torch's kernel skips what a token may not see where queries and keys are the same tokens. Given a mask in its
    place, it computes all products and reads as large a matrix besides.
    """
    assert _FLASH is not None
    past = key.shape[2] - query.shape[2]
    before, there = _FLASH(_side_by_side(query, key), key[:, :, :past], value[:, :, :past], scale=scaling)
    new, here = _FLASH(query, key[:, :, past:], value[:, :, past:], is_causal=True, scale=scaling)
    share = (there.reshape(here.shape) - here).sigmoid().unsqueeze(-1)
    read: torch.Tensor = new.float().lerp(before.reshape(new.shape).float(), share).to(query.dtype)
    return read


def _side_by_side(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Return ``[rows, key heads, queries that share them, d]``, so that keys are read once for all their heads."""
    return query.reshape(query.shape[0], key.shape[1], -1, query.shape[-1])
