"""Grouping requests into batches by a token budget."""

from __future__ import annotations

from collections.abc import Sequence

from longctx_bench.engines.prefixes import alike
from longctx_bench.records import Request


def by_tokens(requests: Sequence[Request], budget: int, equal_lengths: bool = False) -> list[list[Request]]:
    """Group requests so that (longest prompt + new tokens) x batch size stays within a budget.

    Longest first: what does not fit in memory shows in the first minute, not in the last. Requests that begin alike
    stand together, so that an engine can read what they share once.

    Args:
        requests: any order.
        budget: tokens a batch; a request larger than it gets a batch of its own.
        equal_lengths: put only requests of one total length together.
    """
    batches: list[list[Request]] = []
    longest = 0
    for request in _ordered(requests, equal_lengths):
        batch = batches[-1] if batches else []
        longest = max(longest, total_tokens(request))
        joins = bool(batch) and (len(batch) + 1) * longest <= budget
        if joins and not (equal_lengths and total_tokens(request) != total_tokens(batch[0])):
            batch.append(request)
        else:
            batches.append([request])
            longest = total_tokens(request)
    return batches


def _ordered(requests: Sequence[Request], equal_lengths: bool) -> list[Request]:
    if any(request.scored for request in requests):
        # A loss is read off a whole row: only equal lengths matter there.
        return sorted(requests, key=total_tokens, reverse=True)
    groups = [[requests[place] for place in group] for group in alike(requests)]
    if equal_lengths:
        sizes = {total_tokens(request) for request in requests}
        groups = [[r for r in group if total_tokens(r) == size] for group in groups for size in sizes]
    # By place as well: what begins alike with nothing keeps the order that it was given in.
    places = {id(request): place for place, request in enumerate(requests)}
    groups = [group for group in groups if group]
    groups.sort(key=lambda group: (-max(map(total_tokens, group)), min(places[id(request)] for request in group)))
    return [request for group in groups for request in group]


def total_tokens(request: Request) -> int:
    """Return the tokens of a request's prompt and answer together, at most."""
    return len(request.input_ids) + request.max_new_tokens
