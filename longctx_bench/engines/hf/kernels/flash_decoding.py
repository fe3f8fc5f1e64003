"""Attention of one new token a row to a long cache on a GPU: keys and values are read once, by as many as are free."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

IMPLEMENTATION = "longctx_bench_one_query"
_TILE = 2**14
"""Bytes of keys that a program reads at a time, and as many of values; twice that is in shared memory at once."""
_PROGRAMS = 8192
"""Programs that keep a large GPU busy; a row's cache is split until there are so many."""
_LEAST = 256
"""Positions below which splitting costs more than it gives; a power of two."""


def one_query_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from ``[rows, heads, 1, d]`` to ``[rows, key heads, places, d]``; sums are in fp32.

    torch's own kernels are made for many queries: with one and a mask they leave most of a GPU idle, copy the keys for
    every head that shares them, and read padding too. Here each program reads a part of the places for all heads that
    share their keys, and the parts are weighed by what they were divided by (flash decoding, Dao et al. 2023).

    Args:
        module: not looked at.
        query: of the last token of each row.
        key: a cache, longer than what it holds.
        value: likewise.
        attention_mask: bool ``[rows, 1, 1, places]``, True where a key may be looked at, at one place of each row at
            least; what stands elsewhere is not even read. None where all may be.
        scaling: of the logits; one over the root of ``d`` when None.
        kwargs: not looked at.

    Returns:
        ``[rows, 1, heads, d]``, and None for the weights.
    """
    rows, heads, _, size = query.shape
    groups, places = key.shape[1], key.shape[2]
    share = heads // groups
    if attention_mask is None:
        attention_mask = torch.ones(rows, 1, 1, places, dtype=torch.bool, device=query.device)
    # A power of two: the kernel is compiled for each length of a part.
    length = max(_LEAST, triton.next_power_of_2(places * rows * groups // _PROGRAMS))
    size_padded = max(16, triton.next_power_of_2(size))
    block = min(length, max(16, _TILE // (size_padded * key.element_size())))
    parts = triton.cdiv(places, length)
    mixed = query.new_empty(rows, groups, share, parts, size, dtype=torch.float32)
    sums = query.new_empty(rows, groups, share, parts, dtype=torch.float32)
    _part[rows * groups, parts](
        query, key, value, attention_mask, mixed, sums,
        size**-0.5 if scaling is None else scaling, places, parts,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), key.stride(2),
        value.stride(0), value.stride(1), value.stride(2), attention_mask.stride(0),
        groups=groups, share=share, size=size, share_padded=max(16, triton.next_power_of_2(share)),
        size_padded=size_padded, length=length, block=block, num_warps=4, num_stages=2,
    )  # fmt: skip
    whole = (sums.softmax(dim=-1)[..., None, :] @ mixed).to(query.dtype)
    return whole.view(rows, 1, heads, size), None


@triton.jit  # type: ignore[untyped-decorator]
def _part(  # type: ignore[no-untyped-def]
    query, key, value, told, mixed, sums, scaling, places, parts,
    query_row, query_head, key_row, key_head, key_place, value_row, value_head, value_place, told_row,
    groups: tl.constexpr, share: tl.constexpr, size: tl.constexpr, share_padded: tl.constexpr,
    size_padded: tl.constexpr, length: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Attend from the heads of one group of one row to one part of the places."""
    row = tl.program_id(0).to(tl.int64) // groups
    group = tl.program_id(0) % groups
    part = tl.program_id(1)
    head = tl.arange(0, share_padded)
    inner = tl.arange(0, size_padded)
    asked = tl.load(
        query + row * query_row + (group * share + head)[:, None] * query_head + inner[None, :],
        mask=(head < share)[:, None] & (inner < size)[None, :], other=0.0,
    )  # fmt: skip
    keys = key + row * key_row + group * key_head
    values = value + row * value_row + group * value_head
    most = tl.full([share_padded], -float("inf"), tl.float32)
    total = tl.zeros([share_padded], tl.float32)
    found = tl.zeros([share_padded, size_padded], tl.float32)
    for start in range(0, length, block):
        place = part * length + start + tl.arange(0, block)
        seen = tl.load(told + row * told_row + place, mask=place < places, other=0) != 0
        there = seen[:, None] & (inner < size)[None, :]
        far = place.to(tl.int64)
        k = tl.load(keys + far[:, None] * key_place + inner[None, :], mask=there, other=0.0)
        logits = tl.dot(asked, tl.trans(k), input_precision="ieee") * scaling
        logits = tl.where(seen[None, :], logits, -float("inf"))
        now = tl.maximum(most, tl.max(logits, 1))
        # Where nothing was seen yet, minus infinity less itself would be no number.
        safe = tl.where(now == -float("inf"), 0.0, now)
        weights = tl.exp(logits - safe[:, None])
        shrunk = tl.exp(most - safe)
        v = tl.load(values + far[:, None] * value_place + inner[None, :], mask=there, other=0.0)
        found = found * shrunk[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * shrunk + tl.sum(weights, 1)
        most = now
    at = (tl.program_id(0).to(tl.int64) * share + head) * parts + part
    found = found / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(mixed + at[:, None] * size + inner[None, :], found, mask=(head < share)[:, None] & (inner < size)[None, :])
    tl.store(sums + at, tl.where(total == 0.0, -float("inf"), most + tl.log(total)), mask=head < share)
