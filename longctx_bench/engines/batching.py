"""Grouping requests into batches by a token budget."""

from __future__ import annotations

from collections.abc import Sequence

from longctx_bench.records import Request


def by_tokens(requests: Sequence[Request], budget: int, equal_lengths: bool = False) -> list[list[Request]]:
    """Group requests so that (longest prompt + new tokens) x batch size stays within a budget.

    Longest first: what does not fit in memory shows in the first minute, not in the last.

    Args:
        requests: any order.
        budget: tokens a batch; a request larger than it gets a batch of its own.
        equal_lengths: put only requests of one total length together.
    """
    batches: list[list[Request]] = []
    for request in sorted(requests, key=total_tokens, reverse=True):
        batch = batches[-1] if batches else []
        joins = bool(batch) and (len(batch) + 1) * total_tokens(batch[0]) <= budget
        if joins and not (equal_lengths and total_tokens(request) != total_tokens(batch[0])):
            batch.append(request)
        else:
            batches.append([request])
    return batches


def total_tokens(request: Request) -> int:
    """Return the tokens of a request's prompt and answer together, at most."""
    return len(request.input_ids) + request.max_new_tokens
