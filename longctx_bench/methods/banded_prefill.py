"""Prefill by bands on a GPU: a kernel call per band, which returns the log-sum-exps to merge bands by.

A causal triangle, such as all keys at some distance or more, goes through cuDNN's attention, as plain attention does; a
sliding window through flash attention; any other band through FlexAttention, which skips tiles that hold none of its
keys.
"""

from __future__ import annotations

from collections.abc import Iterable
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
_MIN_CUDNN_CAPABILITY = (9, 0)
_MAX_CUDNN_HEAD_DIM = 128


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
        and _capability(device) >= _MIN_CAPABILITY
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


def attend_to_bands(
    bands: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor, Window | BlockMask]], scale: float
) -> torch.Tensor:
    """Attend to the keys of all bands, as by one softmax.

    Args:
        bands: of each band the queries, rotated, ``[rows, heads, queries, head_dim]``; its keys, rotated, and values,
            ``[rows, key heads, keys, head_dim]``; and which of these keys each query attends to. One band's are in
            memory at a time if they are made as they are asked for.
        scale: factor on the logits.

    Returns:
        ``[rows, heads, queries, head_dim]`` in fp32; 0 where a query has no key in any band.
    """
    merged = log_sum = None
    for query, key, value, attended in bands:
        start, output, band_sum = _attend(query, key, value, attended, scale)
        if merged is None or log_sum is None:
            merged = functional.pad(output.float(), (0, 0, start, 0)) if start else output.float()
            log_sum = functional.pad(band_sum, (start, 0), value=-torch.inf) if start else band_sum
            continue
        before = log_sum[:, :, start:]
        # The band's share of the softmax over the keys so far; not a number where a query has none of either.
        share = (band_sum - before).sigmoid().nan_to_num(0.0)
        merged[:, :, start:].lerp_(output.float(), share.unsqueeze(-1))
        log_sum[:, :, start:] = torch.logaddexp(before, band_sum)
    assert merged is not None
    return merged


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, band: Window | BlockMask, scale: float
) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Return the first query that has keys, and from it on outputs and fp32 log-sum-exps ``[rows, heads, queries]``."""
    if isinstance(band, Window):
        query = query[:, :, band.start :]
        is_triangle = band.left < 0 and band.right == 0 and query.shape[2] == key.shape[2]
        attend = _cudnn_attention if is_triangle and _cudnn_supports(query) else _flash_attention
        return band.start, *attend(query, key, value, band, scale)
    from torch.nn.attention.flex_attention import AuxRequest

    output, more = _flex_attention()(
        query, key, value, block_mask=band, scale=scale, enable_gqa=True, return_aux=AuxRequest(lse=True)
    )
    # Minus infinity, and on some devices an output of NaN, where a query has no key.
    return 0, torch.where(more.lse.unsqueeze(-1) > -torch.inf, output, 0), more.lse


def _cudnn_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: Window, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs and log-sum-exps of causal attention between tokens and themselves."""
    output, log_sum, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        query, key, value, None, True, 0.0, True, False, scale=scale
    )
    return output, log_sum.view(query.shape[:3])


def _flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: Window, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs and log-sum-exps of queries that all have keys."""
    output, log_sum, *_ = torch.ops.aten._flash_attention_forward(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), None, None, query.shape[2], key.shape[2],
        0.0, window.right == 0, False, scale=scale, window_size_left=window.left, window_size_right=window.right,
    )  # fmt: skip
    return output.transpose(1, 2), log_sum


def _cudnn_supports(query: torch.Tensor) -> bool:
    """Whether torch has cuDNN's attention for queries that flash attention supports, on GPUs where that is faster."""
    is_enabled = torch.backends.cudnn.is_available() and torch.backends.cuda.cudnn_sdp_enabled()
    return is_enabled and query.shape[-1] <= _MAX_CUDNN_HEAD_DIM and _capability(query.device) >= _MIN_CUDNN_CAPABILITY


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@cache
def _flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)
