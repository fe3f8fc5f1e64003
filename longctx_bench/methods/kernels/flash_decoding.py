"""Flash decoding: attention of one query per row, with the KV cache split across thread blocks (Dao et al. 2023)."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

IMPLEMENTATION = "longctx_bench_one_query"
_TILE = 2**14
"""Bytes of keys, and of values, that a program reads at a time; twice that is in shared memory."""
_PROGRAMS = 8192
"""Programs that keep a large GPU busy; the cache of a row is split until there are this many."""
NUM_WARPS, NUM_STAGES = 4, 2
_MIN_SPLIT = 256
"""Cache slots below which splitting costs more than it saves; a power of two."""


def one_query_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend from ``[rows, heads, 1, d]`` to ``[rows, key heads, slots, d]``, accumulating in fp32.

    torch's kernels are made for many queries: with one query and a mask they leave most of a GPU idle, copy the
    keys for each head of a group, and read padding too. Here each program reads one split of the slots for all heads
    of a group, and the partial results are combined by their log-sum-exps (flash decoding, Dao et al. 2023).

    Args:
        module: not used.
        query: of the last token of each row.
        key: the cache, with slots that hold nothing yet.
        value: as ``key``.
        attention_mask: bool ``[rows, 1, 1, slots]``, True where a key is attended to, at least once per row; other
            slots are not even read. None where all are.
        scaling: of the logits; ``d ** -0.5`` when None.
        kwargs: not used.

    Returns:
        ``[rows, 1, heads, d]``, and None for the attention weights.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = attend(query, key, value, attention_mask, scale)
    return output.to(query.dtype).transpose(1, 2), None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    rotation: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Attend as :func:`one_query_attention` does, on request to keys that are rotated as they are read.

    Args:
        query: ``[rows, heads, 1, d]``.
        key: ``[rows, key heads, slots, d]``.
        value: as ``key``.
        mask: bool ``[rows or 1, 1, 1, slots]``, True where a key is attended to; None where all are.
        scale: factor on the logits.
        rotation: cos and sin by which RoPE rotates the pairs of each key, contiguous ``[rows or 1, slots, d / 2]`` of
            one dtype; None: keys are as they are.

    Returns:
        ``[rows, heads, 1, d]`` in fp32.
    """
    rows, heads, _, size = query.shape
    groups, slots = key.shape[1], key.shape[2]
    group_size = heads // groups
    if mask is None:
        mask = torch.ones(1, 1, 1, slots, dtype=torch.bool, device=query.device)
    cos, sin = rotation or (mask, mask)  # not read without a rotation
    # A power of two: the kernel is compiled for each length of a split.
    length = max(_MIN_SPLIT, triton.next_power_of_2(slots * rows * groups // _PROGRAMS))
    splits = triton.cdiv(slots, length)
    constants = kernel_constants(groups, group_size, size, length, key.element_size(), rotation is not None)
    partial = query.new_empty(rows, groups, group_size, splits, size, dtype=torch.float32)
    log_sums = query.new_empty(rows, groups, group_size, splits, dtype=torch.float32)
    _attend_split[rows * groups, splits](
        query, key, value, mask, cos, sin, partial, log_sums, scale, slots, splits,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), key.stride(2),
        value.stride(0), value.stride(1), value.stride(2),
        mask.stride(0) * (len(mask) > 1), cos.stride(0) * (len(cos) > 1),
        **constants, num_warps=NUM_WARPS, num_stages=NUM_STAGES,
    )  # fmt: skip
    return (log_sums.softmax(dim=-1)[..., None, :] @ partial).view(rows, heads, 1, size)


def kernel_constants(
    groups: int, group_size: int, size: int, length: int, element_size: int, is_rotated: bool
) -> dict[str, Any]:
    """Return what the kernel is compiled for: ``length`` slots of a split, keys of ``element_size`` bytes a number."""
    # Of each pair of dimensions one is in the first half, one in the second; without rotation there is one part.
    part = size // 2 if is_rotated else size
    padded_group, padded_size, padded_part = (max(16, triton.next_power_of_2(n)) for n in (group_size, size, part))
    # Cos and sin are as many numbers as keys.
    block = max(16, _TILE // (padded_size * element_size * (2 if is_rotated else 1)))
    return {
        "groups": groups, "group_size": group_size, "size": size, "part": part, "group_size_padded": padded_group,
        "size_padded": padded_size, "part_padded": padded_part, "is_rotated": is_rotated, "length": length,
        "block": min(length, block),
    }  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _attend_split(  # type: ignore[no-untyped-def]
    query, key, value, mask_ptr, cos_ptr, sin_ptr, partial, log_sums, scale, slots, splits,
    query_row, query_head, key_row, key_head, key_slot, value_row, value_head, value_slot, mask_row, rotation_row,
    groups: tl.constexpr, group_size: tl.constexpr, size: tl.constexpr, group_size_padded: tl.constexpr,
    size_padded: tl.constexpr, part: tl.constexpr, part_padded: tl.constexpr, is_rotated: tl.constexpr,
    length: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Attend from the heads of one group of one row to one split of the slots."""
    row = tl.program_id(0).to(tl.int64) // groups
    group = tl.program_id(0) % groups
    split = tl.program_id(1)
    head = tl.arange(0, group_size_padded)
    inner = tl.arange(0, size_padded)
    of_part = tl.arange(0, part_padded)
    queries = query + row * query_row + (group * group_size + head)[:, None] * query_head + of_part[None, :]
    in_part = (head < group_size)[:, None] & (of_part < part)[None, :]
    q = tl.load(queries, mask=in_part, other=0.0)
    if is_rotated:
        second_q = tl.load(queries + part, mask=in_part, other=0.0)
    keys = key + row * key_row + group * key_head
    values = value + row * value_row + group * value_head
    max_logit = tl.full([group_size_padded], -float("inf"), tl.float32)
    total = tl.zeros([group_size_padded], tl.float32)
    acc = tl.zeros([group_size_padded, size_padded], tl.float32)
    for start in range(0, length, block):
        slot = split * length + start + tl.arange(0, block)
        visible = tl.load(mask_ptr + row * mask_row + slot, mask=slot < slots, other=0) != 0
        slot_64 = slot.to(tl.int64)
        key_part = keys + slot_64[:, None] * key_slot + of_part[None, :]
        loaded_part = visible[:, None] & (of_part < part)[None, :]
        k = tl.load(key_part, mask=loaded_part, other=0.0)
        if is_rotated:
            at_pair = row * rotation_row + slot_64[:, None] * part + of_part[None, :]
            cos = tl.load(cos_ptr + at_pair, mask=loaded_part, other=0.0)
            sin = tl.load(sin_ptr + at_pair, mask=loaded_part, other=0.0)
            second_k = tl.load(key_part + part, mask=loaded_part, other=0.0)
            logits = _rotated_logits(q, second_q, k, second_k, cos, sin)
        else:
            logits = tl.dot(q, tl.trans(k), input_precision="ieee")
        logits *= scale
        logits = tl.where(visible[None, :], logits, -float("inf"))
        new_max = tl.maximum(max_logit, tl.max(logits, 1))
        # Where all was masked so far, minus infinity less itself would be NaN.
        safe = tl.where(new_max == -float("inf"), 0.0, new_max)
        weights = tl.exp(logits - safe[:, None])
        rescale = tl.exp(max_logit - safe)
        loaded = visible[:, None] & (inner < size)[None, :]
        v = tl.load(values + slot_64[:, None] * value_slot + inner[None, :], mask=loaded, other=0.0)
        acc = acc * rescale[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        total = total * rescale + tl.sum(weights, 1)
        max_logit = new_max
    at = (tl.program_id(0).to(tl.int64) * group_size + head) * splits + split
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    in_range = (head < group_size)[:, None] & (inner < size)[None, :]
    tl.store(partial + at[:, None] * size + inner[None, :], acc, mask=in_range)
    tl.store(log_sums + at, tl.where(total == 0.0, -float("inf"), max_logit + tl.log(total)), mask=head < group_size)


@triton.jit
def _rotated_logits(first_query, second_query, first_key, second_key, cos, sin):  # type: ignore[no-untyped-def]
    """Return the logits of queries and of keys that are rotated here, each in two halves of its dimensions."""
    first, second = first_key.to(tl.float32), second_key.to(tl.float32)
    first_rotated = (first * cos - second * sin).to(first_key.dtype)
    second_rotated = (second * cos + first * sin).to(first_key.dtype)
    logits = tl.dot(first_query, tl.trans(first_rotated), input_precision="ieee")
    return logits + tl.dot(second_query, tl.trans(second_rotated), input_precision="ieee")
