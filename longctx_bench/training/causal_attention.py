"""Causal attention for training: unpadded sequences, so the fused kernels' causal flag replaces a mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from longctx_bench.methods.alibi import alibi_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HEAD_DIM_STEP = 8
"""The flash kernels need a head dimension that is a multiple of this."""
CAUSAL = "longctx_bench_causal"
ALIBI = "longctx_bench_alibi_causal"


def causal_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softmax_temperature: torch.Tensor | None = None,
    key_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend causally, within ``sliding_window`` tokens where the layer has one; ``attention_mask`` is ignored.

    ``softmax_temperature``, ``[sequences, heads]`` or ``[sequences, 1]``, multiplies the logits; ``key_bias``,
    ``[sequences, keys]`` in fp32, is then added to those of each key.
    """
    if softmax_temperature is not None:
        query = query * softmax_temperature[:, :, None, None]
    # Norms of the projections come out in fp32 under autocast, and the fast kernels want one type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    head_dim = query.shape[-1]
    if key_bias is not None:
        scaling = head_dim**-0.5 if scaling is None else scaling
        query, key, value = with_key_bias(query, key, value, key_bias / scaling)
    band = None
    if sliding_window is not None and sliding_window < query.shape[2]:
        position = torch.arange(query.shape[2], device=query.device)
        distance = position[:, None] - position[None, :]
        band = (distance >= 0) & (distance < sliding_window)
    mixed = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=band,
        is_causal=band is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed[..., :head_dim].transpose(1, 2).contiguous(), None


def with_key_bias(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values with dimensions that add ``bias``, ``[batch, keys]``, to query x key.

    The fused causal kernels take no bias, but any head dimension. In bf16 a rounded bias would be off by up to 0.4 %,
    so that a second dimension holds what rounding leaves of it. Values get zeros: the kernels want one width.
    """
    sequences, heads, length, width = key.shape
    spare = 2 + -(width + 2) % _HEAD_DIM_STEP
    rounded = bias.to(key.dtype)
    remainder = (bias - rounded.to(bias.dtype)).to(key.dtype)
    extra = functional.pad(torch.stack((rounded, remainder), dim=-1), (0, spare - 2))
    key = torch.cat((key, extra[:, None].expand(sequences, heads, length, spare)), dim=-1)
    ones = query.new_ones(*query.shape[:-1], 2)
    query = torch.cat((query, functional.pad(ones, (0, spare - 2))), dim=-1)
    return query, key, functional.pad(value, (0, spare))


def use_training_attention(model: PreTrainedModel, positions: str) -> None:
    """Switch a model to causal attention without a mask.

    The implementations are registered without a mask function on purpose: transformers then builds none
    (under torch.compile it would build a full one, and the flash kernels would not run).
    """
    AttentionInterface.register(CAUSAL, causal_attention)
    AttentionInterface.register(ALIBI, alibi_attention)
    model.config._attn_implementation = ALIBI if positions == "alibi" else CAUSAL
