"""Prefix sharding: batches with a common prefix go to the same engine, whose prefix cache they share."""

from __future__ import annotations

from collections.abc import Sequence

from longctx_bench.core.types import Request

Batch = Sequence[Request]


def shards(batches: Sequence[Batch], workers: int) -> list[list[Batch]]:
    """Group consecutive batches whose prompts share at least half their tokens.

    A shard is at most a worker's fair share of the cell; otherwise a cell on one haystack would use a single worker.
    """
    max_batches = max(1, -(-len(batches) // workers))
    shards_so_far: list[list[Batch]] = []
    for batch in batches:
        if shards_so_far and len(shards_so_far[-1]) < max_batches and _share_prefix(shards_so_far[-1][-1], batch):
            shards_so_far[-1].append(batch)
        else:
            shards_so_far.append([batch])
    return shards_so_far


def _share_prefix(one: Batch, other: Batch) -> bool:
    before, after = one[-1].input_ids, other[0].input_ids
    half = (min(len(before), len(after)) + 1) // 2
    return half > 0 and list(before[:half]) == list(after[:half])
