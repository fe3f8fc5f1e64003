"""Which batches of a cell belong on one engine: those that begin alike, so that what it keeps of a prompt is used."""

from __future__ import annotations

from collections.abc import Sequence

from longctx_bench.core.types import Request

Batch = Sequence[Request]


def shards(batches: Sequence[Batch], workers: int) -> list[list[Batch]]:
    """Group neighbouring batches that share at least half of a prompt; a shard is whole batches, in their order.

    No shard is larger than a worker's fair part of the cell, or a cell on one haystack would keep one worker busy.
    """
    most = max(1, -(-len(batches) // workers))
    found: list[list[Batch]] = []
    for batch in batches:
        if found and len(found[-1]) < most and _alike(found[-1][-1], batch):
            found[-1].append(batch)
        else:
            found.append([batch])
    return found


def _alike(one: Batch, other: Batch) -> bool:
    before, after = one[-1].input_ids, other[0].input_ids
    half = (min(len(before), len(after)) + 1) // 2
    return half > 0 and list(before[:half]) == list(after[:half])
