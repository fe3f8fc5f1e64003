"""Batches of requests under a token budget."""

from __future__ import annotations

from collections.abc import Sequence

from longctx_bench.core.types import Request
from longctx_bench.engines.prefix_groups import group_by_prefix


def batch_by_tokens(
    requests: Sequence[Request], budget: int, equal_lengths: bool = False, shared_prefix_budget: int = 0
) -> list[list[Request]]:
    """Batch requests so that (longest prompt + new tokens) x batch size stays within a budget.

    Longest first, so that running out of memory happens in the first minute and not in the last. Requests that share
    a prefix are adjacent, so that an engine can prefill it once.

    Args:
        requests: in any order.
        budget: tokens per batch; a larger request gets a batch of its own.
        equal_lengths: batch only requests with the same number of total tokens.
        shared_prefix_budget: a larger budget for batches whose requests share a prefix, so that they are not split.
    """
    batches: list[list[Request]] = []
    longest = 0
    for group in _groups(requests, equal_lengths):
        extended = [*batches[-1], *group] if batches else group
        # Splitting a group prefills its prefix more than once.
        separate = (
            shared_prefix_budget > budget
            and len(group) > 1
            and len(extended) * max(map(num_total_tokens, extended)) > budget
        )
        limit = shared_prefix_budget if separate else budget
        for index, request in enumerate(group):
            batch = batches[-1] if batches and not (separate and index == 0) else []
            longest = max(longest, num_total_tokens(request))
            fits = bool(batch) and (len(batch) + 1) * longest <= limit
            if fits and not (equal_lengths and num_total_tokens(request) != num_total_tokens(batch[0])):
                batch.append(request)
            else:
                batches.append([request])
                longest = num_total_tokens(request)
    return batches


def _groups(requests: Sequence[Request], equal_lengths: bool) -> list[list[Request]]:
    """Return groups that share a prefix (and a length, if ``equal_lengths``), longest first."""
    if any(request.scored for request in requests):
        # Log-likelihoods take whole rows: only equal lengths matter.
        return [[request] for request in sorted(requests, key=num_total_tokens, reverse=True)]
    groups = [[requests[index] for index in group] for group in group_by_prefix(requests)]
    if equal_lengths:
        sizes = {num_total_tokens(request) for request in requests}
        groups = [[r for r in group if num_total_tokens(r) == size] for group in groups for size in sizes]
    # The index breaks ties: requests that share nothing stay in the order they came in.
    index_of = {id(request): index for index, request in enumerate(requests)}
    groups = [group for group in groups if group]
    groups.sort(key=lambda group: (-max(map(num_total_tokens, group)), min(index_of[id(request)] for request in group)))
    return groups


def num_total_tokens(request: Request) -> int:
    """Return the tokens of a request's prompt and of its longest possible completion."""
    return len(request.input_ids) + request.max_new_tokens
