"""Banded attention over a paged KV cache of keys that are not rotated; imports no vLLM.

A cache is laid out as vLLM shows it to attention backends: ``[blocks, key heads, tokens of a block, 2 x head_dim]``,
each token's key before its value. The attention itself is that of :mod:`longctx_bench.methods.banded_attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from longctx_bench.methods.banded_attention import BandedRotation, Tables, attend, make_tables

_MAX_PADDING = 2
"""Sequences are padded to at most so many times their tokens."""


@dataclass(frozen=True)
class PagedSequence:
    """A sequence of a forward pass."""

    row: int
    """In the block table."""
    start: int
    """Of its new tokens among those of the pass."""
    new: int
    total: int
    """Its tokens, the new ones and those in the cache."""


@dataclass(frozen=True)
class PagedRows:
    """Sequences that attend together, padded on the left to the longest."""

    tokens: torch.Tensor
    """Their new tokens among those of the pass, int64 ``[rows, new]``."""
    blocks: torch.Tensor
    """Blocks of all their tokens in the cache, int64 ``[rows, all tokens]``; of padding, that of the first token."""
    offsets: torch.Tensor
    """Their places within the blocks, of the same shape."""
    tables: Tables


def group_sequences(sequences: Sequence[PagedSequence]) -> list[list[PagedSequence]]:
    """Return sequences in groups that attend together: those with one new token, and all others alone."""
    groups: list[list[PagedSequence]] = []
    for sequence in sorted(sequences, key=lambda each: (each.new, -each.total)):
        first = groups[-1][0] if groups else None
        if first and first.new == sequence.new == 1 and first.total <= _MAX_PADDING * sequence.total:
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
    return groups


def make_rows(
    rotation: BandedRotation,
    group: Sequence[PagedSequence],
    block_table: torch.Tensor,
    block_size: int,
    dtype: torch.dtype,
) -> PagedRows:
    """Return what all layers of a forward pass need to attend from a group of sequences.

    Args:
        rotation: what the method does to positions.
        group: sequences with the same number of new tokens.
        block_table: blocks of each sequence in order, ``[sequences of the pass, blocks]``, on the cache's device.
        block_size: tokens of a block.
        dtype: the model's precision.
    """
    device, new = block_table.device, group[0].new
    total = max(sequence.total for sequence in group)
    padding = torch.tensor([total - sequence.total for sequence in group])[:, None]
    slots = torch.arange(total)
    mask = (slots >= padding)[:, None, None] if bool(padding.any()) else None
    positions = (slots - padding).clamp(min=0).to(device)
    rows = torch.tensor([sequence.row for sequence in group], device=device)
    starts = torch.tensor([sequence.start for sequence in group], device=device)
    return PagedRows(
        tokens=starts[:, None] + torch.arange(new, device=device),
        blocks=block_table[rows].gather(1, positions // block_size).long(),
        offsets=positions % block_size,
        tables=make_tables(rotation, (new, total, dtype), mask, device),
    )


def write_cache(cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
    """Store new tokens.

    Args:
        cache: of one layer.
        key: ``[tokens, key heads, head_dim]``, not rotated.
        value: of the same shape.
        slots: block x block size + offset of each token, int64 ``[tokens]``. Those below 0 are padding of the pass, and
            go to the first block, which vLLM gives to no sequence.
    """
    filled = slots.clamp(min=0)
    block_size = cache.shape[2]
    cache[filled // block_size, :, filled % block_size] = torch.cat((key, value), dim=-1)[: len(slots)]


def attend_paged(rows: PagedRows, query: torch.Tensor, cache: torch.Tensor, output: torch.Tensor, scale: float) -> None:
    """Attend from a group of sequences.

    Args:
        rows: the group.
        query: ``[tokens of the pass, heads, head_dim]``, not rotated.
        cache: of this layer, which holds the new tokens already.
        output: of the shape of ``query``; the group's tokens are written.
        scale: factor on the logits.
    """
    cached = cache[rows.blocks, :, rows.offsets].transpose(1, 2)
    key, value = cached.chunk(2, dim=-1)
    attended = attend(rows.tables, query[rows.tokens].transpose(1, 2), key, value, scale)
    output[rows.tokens] = attended.transpose(1, 2).to(output.dtype)
