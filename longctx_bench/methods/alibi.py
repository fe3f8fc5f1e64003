"""ALiBi: a linear penalty on attention distance instead of positions (Press et al. 2021, arXiv 2108.12409)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from longctx_bench.core.errors import UserError
from longctx_bench.methods.attention_override import override_attention
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.override_validation import Change

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

IMPLEMENTATION = "longctx_bench_alibi"


def slopes(heads: int) -> list[float]:
    """Return one slope per head: 2^(-8/n), 2^(-16/n), ... for n heads, n a power of two.

    For other n, as in the authors' code: the slopes for the next lower power of two, then every second slope for the
    next higher one.
    """
    lower = 2 ** math.floor(math.log2(heads))
    geometric = [2.0 ** (-8.0 * (index + 1) / lower) for index in range(lower)]
    return geometric if lower == heads else geometric + slopes(2 * lower)[0::2][: heads - lower]


def alibi_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention with the bias -slope * (query position - key position).

    Distances are counted from the end of the key axis, which is the last query, so that left padding and a KV cache do
    not change them. ``query`` is ``[batch, heads, new tokens, head_dim]``; ``attention_mask`` is boolean and
    broadcasts to ``[batch, heads, new tokens, all tokens]``, or None for causal attention.
    """
    import torch
    from torch.nn import functional

    if attention_mask is not None and attention_mask.dtype != torch.bool:
        raise UserError(
            "alibi: this model passes its own attention bias in the mask, which ALiBi cannot be combined with"
        )
    heads, new, total = query.shape[1], query.shape[2], key.shape[2]
    groups = heads // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    position = torch.arange(total, device=query.device)
    distance = position[total - new :, None] - position[None, :]
    slope = torch.tensor(slopes(heads), device=query.device, dtype=torch.float32)
    bias = -slope[:, None, None] * distance
    min_value = torch.finfo(query.dtype).min
    allowed = distance >= 0 if attention_mask is None else attention_mask[..., :total]
    bias = torch.where(allowed, bias.to(query.dtype), min_value)
    if bias.dim() == 3:
        bias = bias[None]
    output = functional.scaled_dot_product_attention(
        query, key.to(query.dtype), value.to(query.dtype), attn_mask=bias, scale=scaling
    )
    return output.transpose(1, 2).contiguous(), None


class ALiBi(Method):
    """A checkpoint trained with ALiBi; nothing changes with the length."""

    id: ClassVar[str] = "alibi"
    changes: ClassVar[frozenset[Change]] = frozenset({"rotary_pairs"})
    checkpoint: ClassVar[str | None] = "alibi"

    def uses_factor(self) -> bool:
        return False

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        return NoPE().model_overrides(base, length)

    @contextmanager
    def patch(self, model: PreTrainedModel, base: BaseModelInfo, length: int) -> Iterator[None]:
        with override_attention(model, IMPLEMENTATION, alibi_attention):
            yield
