"""Grouping requests into batches by a token budget."""

from __future__ import annotations

from collections.abc import Sequence

from longctx_bench.core.types import Request
from longctx_bench.engines.prefix_groups import alike


def by_tokens(
    requests: Sequence[Request], budget: int, equal_lengths: bool = False, alike_budget: int = 0
) -> list[list[Request]]:
    """Group requests so that (longest prompt + new tokens) x batch size stays within a budget.

    Longest first: what does not fit in memory shows in the first minute, not in the last. Requests that begin alike
    stand together, so that an engine can read what they share once.

    Args:
        requests: any order.
        budget: tokens a batch; a request larger than it gets a batch of its own.
        equal_lengths: put only requests of one total length together.
        alike_budget: the same for a batch of requests that begin alike, where it is larger: they are not parted.
    """
    batches: list[list[Request]] = []
    longest = 0
    for group in _groups(requests, equal_lengths):
        beside = [*batches[-1], *group] if batches else group
        # What a beginning saves is lost where its requests are parted.
        own = alike_budget > budget and len(group) > 1 and len(beside) * max(map(total_tokens, beside)) > budget
        limit = alike_budget if own else budget
        for place, request in enumerate(group):
            batch = batches[-1] if batches and not (own and place == 0) else []
            longest = max(longest, total_tokens(request))
            joins = bool(batch) and (len(batch) + 1) * longest <= limit
            if joins and not (equal_lengths and total_tokens(request) != total_tokens(batch[0])):
                batch.append(request)
            else:
                batches.append([request])
                longest = total_tokens(request)
    return batches


def _groups(requests: Sequence[Request], equal_lengths: bool) -> list[list[Request]]:
    """Return what begins alike and, where that is wanted, is of one length, side by side; longest first."""
    if any(request.scored for request in requests):
        # A loss is read off a whole row: only equal lengths matter there.
        return [[request] for request in sorted(requests, key=total_tokens, reverse=True)]
    groups = [[requests[place] for place in group] for group in alike(requests)]
    if equal_lengths:
        sizes = {total_tokens(request) for request in requests}
        groups = [[r for r in group if total_tokens(r) == size] for group in groups for size in sizes]
    # By place as well: what begins alike with nothing keeps the order that it was given in.
    places = {id(request): place for place, request in enumerate(requests)}
    groups = [group for group in groups if group]
    groups.sort(key=lambda group: (-max(map(total_tokens, group)), min(places[id(request)] for request in group)))
    return groups


def total_tokens(request: Request) -> int:
    """Return the tokens of a request's prompt and answer together, at most."""
    return len(request.input_ids) + request.max_new_tokens
