"""Which prompts of a batch are prefilled together: as many as keep the device busy, or each behind the likest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from longctx_bench.engines.batching import num_total_tokens
from longctx_bench.engines.prefix_groups import common_prefix_length, group_by_prefix
from longctx_bench.engines.request_state import Row

MOST_LOGITS = 2**27
"""Logits that a pass may give for guesses: half a GiB in fp32."""
_SAVED = 0.25
"""Share of a batch's prompt tokens from which not reading them again pays for reading prompts one by one."""


def together(rows: list[Row], at_once: int, room: int, words: int, free: bool) -> list[list[Row]]:
    """Group the rows of a batch for its prefill.

    Args:
        rows: in any order.
        at_once: prompt tokens that keep the device busy.
        room: prompt tokens for which a pass has memory.
        words: size of the vocabulary.
        free: whether a row's cache may be cut and used again: without that nothing is shared, and only prompts of one
            length are read together.

    Returns:
        Each row once. Where a group is one row, the one before it may have read its beginning.
    """
    ids = [row.request.input_ids for row in rows]
    if free:
        groups = group_by_prefix([row.request for row in rows])
        saved = sum(common_prefix_length(ids[one], ids[other]) for group in groups for one, other in pairwise(group))
        # Short prompts keep a GPU busy together alone: there sharing has to save more than that.
        short = max(map(len, ids)) < at_once
        if saved > (2 * _SAVED if short else _SAVED) * sum(map(len, ids)):
            return [[rows[place]] for group in groups for place in group]
    found: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.request.input_ids), reverse=True):
        group = [*found[-1], row] if found else [row]
        even = len(group[0].request.input_ids) == len(row.request.input_ids)
        if len(group) > 1 and (free or even) and _fit(group, min(at_once, room), words):
            found[-1] = group
        else:
            found.append([row])
    return found


def held(rows: Sequence[Row]) -> int:
    """Return the positions that rows take beside each other, to the end of their answers."""
    return len(rows) * max((num_total_tokens(row.request) for row in rows), default=0)


def parts(rows: list[Row], tokens: int) -> list[list[Row]]:
    """Part rows so that those of a part, padded, hold so many prompt and new tokens at most, or are one; in order."""
    found: list[list[Row]] = []
    for row in rows:
        beside = [*found[-1], row] if found else [row]
        if len(beside) > 1 and held(beside) <= tokens:
            found[-1] = beside
        else:
            found.append([row])
    return found


def first_draft(row: Row, rows: int, words: int) -> list[int]:
    """Return as much of a row's first draft as its budget has room for behind one more token, read beside others."""
    most = min(row.left - 1, MOST_LOGITS // (rows * words))
    return list(row.request.drafts[0][: max(0, most)]) if row.request.drafts else []


def _fit(rows: list[Row], tokens: int, words: int) -> bool:
    """Tell whether prompts, the longest first, may be read together: their tokens, and the logits at their ends."""
    longest, shortest = (len(row.request.input_ids) for row in (rows[0], rows[-1]))
    ends = longest - shortest + 1 + max(len(first_draft(row, len(rows), words)) for row in rows)
    return len(rows) * longest <= tokens and len(rows) * ends * words <= MOST_LOGITS
