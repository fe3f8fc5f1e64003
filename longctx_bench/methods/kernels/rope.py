"""Rotary embedding as one Triton kernel; torch launches ten, each of which reads and writes all queries and keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_PAIRS_PER_PROGRAM = 1024
"""Pairs of numbers that a program rotates."""


def apply_rope(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``x * cos + rotate_half(x) * sin`` of queries and keys, rounded where torch rounds: the same bits.

    Args:
        query: ``[rows, heads, tokens, d]``.
        key: ``[rows, key heads, tokens, d]``, of the same dtype.
        cos: ``[rows or 1, tokens, d]``, of the same dtype; the last dimension contiguous, as in the others.
        sin: as ``cos``.
    """
    rows, heads, tokens, size = query.shape
    half = size // 2
    half_padded = triton.next_power_of_2(half)
    block = max(1, _PAIRS_PER_PROGRAM // half_padded)
    outputs = torch.empty_like(query), torch.empty_like(key)
    strides = [stride for states in (query, key, *outputs) for stride in states.stride()[:3]]
    strides += [stride for table in (cos, sin) for stride in (table.stride(0) * (len(table) > 1), table.stride(1))]
    # A fused multiply-add would round once where torch rounds twice.
    _rotate[triton.cdiv(rows * tokens, block), heads + key.shape[1]](
        query, key, *outputs, cos, sin, rows * tokens, tokens, heads, *strides,
        half=half, half_padded=half_padded, block=block, enable_fp_fusion=False,
    )  # fmt: skip
    return outputs


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]
    query, key, query_out, key_out, cos, sin, num_tokens, tokens, heads,
    query_row, query_head, query_token, key_row, key_head, key_token,
    query_out_row, query_out_head, query_out_token, key_out_row, key_out_head, key_out_token,
    cos_row, cos_token, sin_row, sin_token,
    half: tl.constexpr, half_padded: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Rotate one head of some tokens: the heads of the query come first, then those of the key."""
    index = tl.program_id(0) * block + tl.arange(0, block)
    head = tl.program_id(1)
    row, token = (index // tokens).to(tl.int64)[:, None], (index % tokens).to(tl.int64)[:, None]
    inner = tl.arange(0, half_padded)[None, :]
    mask = (index < num_tokens)[:, None] & (inner < half)
    if head < heads:
        source = query + row * query_row + head * query_head + token * query_token + inner
        target = query_out + row * query_out_row + head * query_out_head + token * query_out_token + inner
    else:
        source = key + row * key_row + (head - heads) * key_head + token * key_token + inner
        target = key_out + row * key_out_row + (head - heads) * key_out_head + token * key_out_token + inner
    cosine = cos + row * cos_row + token * cos_token + inner
    sine = sin + row * sin_row + token * sin_token + inner
    dtype = query_out.dtype.element_ty
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=mask, other=0.0).to(tl.float32)
    rotated = (first * tl.load(cosine, mask=mask, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)
    rotated += (-second * tl.load(sine, mask=mask, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)
    tl.store(target, rotated.to(dtype), mask=mask)
    rotated = (second * tl.load(cosine + half, mask=mask, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)
    rotated += (first * tl.load(sine + half, mask=mask, other=0.0).to(tl.float32)).to(dtype).to(tl.float32)
    tl.store(target + half, rotated.to(dtype), mask=mask)
