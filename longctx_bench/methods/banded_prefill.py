"""Prefill by bands on a GPU: a kernel call per band, which returns the log-sum-exps to merge bands by.

A band that is a sliding window or a causal triangle, as most are, goes through flash attention; any other through
FlexAttention, which skips tiles that hold none of its keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

_TILE = 128
"""Queries and keys in a tile of FlexAttention."""
_MIN_CAPABILITY = (8, 0)
"""Of GPUs that torch has flash attention for."""
_MAX_HEAD_DIM = 256


@dataclass(frozen=True)
class Window:
    """A band as flash attention takes it, the last query aligned with the last key of the band."""

    start: int
    """The first query that has keys."""
    left: int
    """Keys to attend to before the aligned one; -1: all."""
    right: int
    """And behind it: 0, or -1 for all."""


def flash_supports(dtype: torch.dtype, head_dim: int, device: torch.device) -> bool:
    """Whether torch has flash attention with windows for a model on a GPU."""
    return (
        torch.version.hip is None
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim % 8 == 0
        and head_dim <= _MAX_HEAD_DIM
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= _MIN_CAPABILITY
    )


def as_window(first: torch.Tensor, last: torch.Tensor, keys: int) -> Window | None:
    """Return a band as a window; None if it is none.

    Args:
        first: the first key of each query, int64 ``[queries]``, counted from the first of the band.
        last: the last key of each query, below ``first`` where it has none.
        keys: of the band.
    """
    has_keys = first <= last
    start = int(has_keys.long().argmax())
    aligned = torch.arange(start, len(first)) + keys - len(first)
    first, last = first[start:], last[start:]
    if not bool(has_keys[start:].all()) or len(aligned) > keys:
        return None
    if torch.equal(last, aligned):
        right = 0
    elif bool((last == keys - 1).all()):
        right = -1
    else:
        return None
    if not bool(first.any()):
        return Window(start, -1, right)
    left = int(aligned[-1] - first[-1])
    return Window(start, left, right) if torch.equal(first, (aligned - left).clamp(min=0)) else None


def block_mask(first: torch.Tensor, last: torch.Tensor, keys: int, device: torch.device) -> BlockMask:
    """Return a band as FlexAttention takes it; arguments as for :func:`as_window`."""
    from torch.nn.attention.flex_attention import BlockMask

    tiles = -(-len(first) // _TILE)
    padding = (0, tiles * _TILE - len(first))
    firsts, lasts = (
        functional.pad(each[None].double(), padding, mode="replicate").long().view(tiles, _TILE)
        for each in (first, last)
    )
    of_keys = torch.arange(-(-keys // _TILE))
    some = (of_keys >= firsts.amin(1, keepdim=True) // _TILE) & (of_keys <= lasts.amax(1, keepdim=True) // _TILE)
    whole = some & (of_keys * _TILE >= firsts.amax(1, keepdim=True))
    whole &= (of_keys + 1) * _TILE <= lasts.amin(1, keepdim=True) + 1
    first_key, last_key = first.to(device, torch.int32), last.to(device, torch.int32)

    def is_in_band(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (key >= first_key[query]) & (key <= last_key[query])

    def in_order(tiles_of: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how many tiles of keys there are for each tile of queries, and their numbers, these first."""
        numbers = tiles_of.long().argsort(dim=1, descending=True, stable=True)
        return tiles_of.sum(1).to(device, torch.int32)[None, None], numbers.to(device, torch.int32)[None, None]

    return BlockMask.from_kv_blocks(
        *in_order(some & ~whole),
        *in_order(whole),
        BLOCK_SIZE=_TILE,
        mask_mod=is_in_band,
        seq_lengths=(len(first), keys),
    )


def attend_to_band(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, band: Window | BlockMask, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to the keys of a band.

    Args:
        query: ``[rows, heads, queries, head_dim]``, rotated.
        key: ``[rows, key heads, keys, head_dim]`` of the band, rotated.
        value: of the same shape.
        band: which of the keys each query attends to.
        scale: factor on the logits.

    Returns:
        Outputs, and the log-sum-exp of each query's logits, fp32 ``[rows, heads, queries]``; minus infinity where a
        query has no key.
    """
    if isinstance(band, Window):
        output, log_sum = _flash_attention(query[:, :, band.start :], key, value, band, scale)
        return (
            functional.pad(output, (0, 0, band.start, 0)),
            functional.pad(log_sum, (band.start, 0), value=-torch.inf),
        )
    from torch.nn.attention.flex_attention import AuxRequest

    output, more = _flex_attention()(
        query, key, value, block_mask=band, scale=scale, enable_gqa=True, return_aux=AuxRequest(lse=True)
    )
    return output, more.lse


def _flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: Window, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs and log-sum-exps of queries that all have keys."""
    output, log_sum, *_ = torch.ops.aten._flash_attention_forward(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), None, None, query.shape[2], key.shape[2],
        0.0, window.right == 0, False, scale=scale, window_size_left=window.left, window_size_right=window.right,
    )  # fmt: skip
    return output.transpose(1, 2), log_sum


@cache
def _flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
