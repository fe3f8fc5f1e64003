"""Decoding by bands: one query per row, for which each key is in one band at most.

RoPE's logit depends on the mapped positions' difference alone. With one query that is one number per key, whatever the
band, so that rotating each key by it is all that sets this apart from plain decoding. The query stays as it is, and
there is one softmax over all keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

try:
    from longctx_bench.methods.kernels import flash_decoding
except ImportError:  # Triton comes with torch where there is one for the GPU.
    flash_decoding = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from longctx_bench.methods.banded import Band

_TILE = 2**19
"""Numbers of all rows' keys that are rotated at a time on a CPU, in memory that is used again."""


@dataclass(frozen=True)
class DecodingTables:
    """All bands for one new token per row, which the layers of a forward pass share; rows is 1 where all are alike."""

    cos: torch.Tensor
    """Of the rotation of each key by its mapped position less that of the query, ``[rows, slots, head_dim / 2]``."""
    sin: torch.Tensor
    is_attended: torch.Tensor
    """Whether a key is in any band, bool ``[rows, slots]``."""
    factor: float
    """On logits: that on cos and sin, of query and key."""


def make_decoding_tables(
    bands: Sequence[Band],
    position: torch.Tensor,
    query: torch.Tensor,
    frequencies: torch.Tensor,
    factor: float,
    dtype: torch.dtype,
) -> DecodingTables:
    """Return the tables of a forward pass.

    Args:
        bands: of the method; they do not overlap.
        position: of each slot, int64 ``[rows or 1, slots]``, below 0 at padding.
        query: position of the query, int64 ``[rows or 1, 1]``; slots behind it are empty.
        frequencies: radians per token for each pair of dimensions, fp32 ``[head_dim / 2]``.
        factor: on cos and sin.
        dtype: the model's precision, which cos and sin have for the kernel, so that it reads less; else they are fp32.
    """
    key = position.clamp(min=0)
    distance = torch.zeros(position.shape, dtype=torch.float32, device=position.device)
    is_attended = torch.zeros(position.shape, dtype=torch.bool, device=position.device)
    for band in bands:
        last = torch.minimum(band.last(query), query)
        is_in_band = (position >= band.first(query).clamp(min=0)) & (position <= last)
        distance = torch.where(is_in_band, (band.key(key) - band.query(query)).float(), distance)
        is_attended |= is_in_band
    angles = distance[:, :, None] * frequencies
    cos, sin = (table.to(dtype if _uses_kernel(position) else torch.float32) for table in (angles.cos(), angles.sin()))
    return DecodingTables(cos, sin, is_attended, factor**2)


def attend_one_query(
    tables: DecodingTables, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attend from one query per row.

    Args:
        tables: of this forward pass.
        query: ``[rows, heads, 1, head_dim]``, not rotated.
        key: ``[rows, key heads, slots, head_dim]``, not rotated.
        value: of the same shape.
        scale: factor on the logits.

    Returns:
        ``[rows, heads, 1, head_dim]`` in fp32.
    """
    scale *= tables.factor
    if _uses_kernel(query):
        mask = tables.is_attended[:, None, None]
        return flash_decoding.attend(query, key, value, mask, scale, rotation=(tables.cos, tables.sin))
    rows, key_heads, slots, width = key.shape
    first_query, second_query = (query.reshape(rows, key_heads, -1, width).float() * scale).chunk(2, dim=-1)
    step = min(slots, max(1, _TILE // (rows * key_heads * width)))
    tiles = [slice(start, min(start + step, slots)) for start in range(0, slots, step)]
    tiles = [tile for tile in tiles if bool(tables.is_attended[:, tile].any())]
    logits = torch.empty(rows, key_heads, first_query.shape[2], slots, device=query.device)
    halves = torch.empty(2, rows, key_heads, step, width // 2, device=query.device)
    for tile in tiles:
        cos, sin = tables.cos[:, None, tile], tables.sin[:, None, tile]
        first_key, second_key = key[:, :, tile].chunk(2, dim=-1)
        first, second = halves[:, :, :, : tile.stop - tile.start]
        torch.mul(first_key, cos, out=first).addcmul_(second_key, sin, value=-1)
        torch.mul(second_key, cos, out=second).addcmul_(first_key, sin)
        logits[..., tile] = first_query @ first.transpose(2, 3) + second_query @ second.transpose(2, 3)
    weights = logits.masked_fill_(~tables.is_attended[:, None, None], -torch.inf).softmax(dim=-1)
    output = torch.zeros(rows, key_heads, first_query.shape[2], width, device=query.device)
    values = torch.empty(rows, key_heads, step, width, device=query.device)
    for tile in tiles:
        output += weights[..., tile] @ values[:, :, : tile.stop - tile.start].copy_(value[:, :, tile])
    return output.view(query.shape)


def _uses_kernel(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and flash_decoding is not None
