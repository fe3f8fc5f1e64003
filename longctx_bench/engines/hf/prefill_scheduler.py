"""Prefill scheduling: which prompts share a forward pass, or follow a prompt with the same prefix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from longctx_bench.engines.batching import num_total_tokens
from longctx_bench.engines.prefix_groups import common_prefix_length, group_by_prefix
from longctx_bench.engines.request_state import RequestState

MAX_LOGITS_PER_PASS = 2**27
"""Logits that a forward pass may return to verify drafts: half a GiB in fp32."""
_MIN_SAVED_FRACTION = 0.25
"""Share of all prompt tokens that prefix sharing must save for prompts to be prefilled one by one."""


def schedule_prefills(
    states: list[RequestState],
    max_prefill_tokens: int,
    prefill_token_budget: int,
    vocab_size: int,
    ragged: bool = True,
    share_prefixes: bool = True,
) -> list[list[RequestState]]:
    """Group requests by the forward pass that prefills them.

    Args:
        states: in any order.
        max_prefill_tokens: prompt tokens that keep the device busy; more of them in one pass are not faster.
        prefill_token_budget: prompt tokens that a pass has memory for.
        vocab_size: of the model.
        ragged: whether prompts of different lengths may be padded on the right in one pass.
        share_prefixes: whether a prompt may be prefilled behind the prefix that it shares with the one before it.

    Returns:
        Each request once. A group of one request may share a prefix with the group before it.
    """
    ids = [state.request.input_ids for state in states]
    if share_prefixes:
        groups = group_by_prefix([state.request for state in states])
        saved = sum(common_prefix_length(ids[a], ids[b]) for group in groups for a, b in pairwise(group))
        # Short prompts keep a GPU busy in one pass only: there, sharing has to save more than that.
        threshold = 2 * _MIN_SAVED_FRACTION if max(map(len, ids)) < max_prefill_tokens else _MIN_SAVED_FRACTION
        if saved > threshold * sum(map(len, ids)):
            return [[states[index]] for group in groups for index in group]
    result: list[list[RequestState]] = []
    for state in sorted(states, key=lambda state: len(state.request.input_ids), reverse=True):
        group = [*result[-1], state] if result else [state]
        allowed = ragged or len(group[0].request.input_ids) == len(state.request.input_ids)
        if len(group) > 1 and allowed and _fits(group, min(max_prefill_tokens, prefill_token_budget), vocab_size):
            result[-1] = group
        else:
            result.append([state])
    return result


def num_padded_tokens(states: Sequence[RequestState]) -> int:
    """Return the cache slots of a batch: rows x the longest prompt with its longest possible completion."""
    return len(states) * max((num_total_tokens(state.request) for state in states), default=0)


def split_by_token_budget(states: list[RequestState], max_tokens: int) -> list[list[RequestState]]:
    """Split requests, in order, into batches of at most ``max_tokens`` padded tokens, or of one request."""
    result: list[list[RequestState]] = []
    for state in states:
        extended = [*result[-1], state] if result else [state]
        if len(extended) > 1 and num_padded_tokens(extended) <= max_tokens:
            result[-1] = extended
        else:
            result.append([state])
    return result


def clip_draft(state: RequestState, num_rows: int, vocab_size: int) -> list[int]:
    """Return a request's first draft, clipped to its token budget and to the logits of a pass of ``num_rows`` rows."""
    max_tokens = min(state.remaining_tokens - 1, MAX_LOGITS_PER_PASS // (num_rows * vocab_size))
    return list(state.request.drafts[0][: max(0, max_tokens)]) if state.request.drafts else []


def _fits(states: list[RequestState], max_tokens: int, vocab_size: int) -> bool:
    """Whether prompts, the longest first, fit in one pass: their tokens, and the logits at their ends."""
    longest, shortest = (len(state.request.input_ids) for state in (states[0], states[-1]))
    num_logits = longest - shortest + 1 + max(len(clip_draft(state, len(states), vocab_size)) for state in states)
    return len(states) * longest <= max_tokens and len(states) * num_logits * vocab_size <= MAX_LOGITS_PER_PASS
