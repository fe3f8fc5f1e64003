"""Attention of a few new tokens to a long cache on a GPU, as two matrix products that read keys and values once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from longctx_bench.methods.attending import attending

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IMPLEMENTATION = "longctx_bench_few_queries"
MOST = 8
"""New tokens of a row up to which the products are not larger than reading the keys."""


@contextmanager
def few_queries(model: PreTrainedModel) -> Iterator[None]:
    """Let a model on a GPU attend so inside; on a CPU, and where a method brought its own attention, nothing changes.

    torch's kernels are made for many queries: with one, they leave most of a GPU idle, copy the keys for every head
    that shares them, or prepare themselves anew for each length of the cache.
    """
    # Models that do not ask transformers for their attention read the name themselves, and would not know this one.
    asks = getattr(model, "_supports_attention_backend", False)
    if model.device.type != "cuda" or model.config._attn_implementation != "sdpa" or not asks:
        yield
        return
    with attending(model, IMPLEMENTATION, few_queries_attention):
        yield


def few_queries_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend from ``[rows, heads, tokens, d]`` to ``[rows, key heads, all tokens, d]``; logits and softmax are in fp32.

    ``attention_mask``, ``[rows or 1, 1, tokens, all tokens]``, is True where a token may look, or added to the logits.
    """
    rows, heads, width, _ = query.shape
    groups, there = key.shape[1], key.shape[2]
    if width > MOST or (attention_mask is None and width > 1) or kwargs.get("position_bias") is not None:
        mixed: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return mixed
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Heads that share keys stand side by side, so that their keys are read once.
    asked = query.reshape(rows * groups, heads // groups * width, -1)
    logits = _product(asked, key.flatten(0, 1).transpose(1, 2)).mul_(scale).view(rows, groups, -1, width, there)
    if attention_mask is not None:
        mask = attention_mask[:, :, None, :, :there]
        logits = logits.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else logits.add_(mask)
    weights = logits.softmax(dim=-1).to(value.dtype).view(rows * groups, -1, there)
    read = torch.bmm(weights, value.flatten(0, 1)).view(rows, heads, width, -1)
    return read.transpose(1, 2).contiguous(), None


def _product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply batches of matrices into fp32, as the fused kernels do."""
    if left.dtype == torch.float32 or not left.is_cuda:
        return torch.bmm(left.float(), right.float())
    return torch.bmm(left, right, out_dtype=torch.float32)
