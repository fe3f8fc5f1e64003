"""Prefix sharing: groups of requests whose prompts begin with the same tokens."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from longctx_bench.core.types import Request

_MIN_SHARED_TOKENS = 32
_MIN_SHARED_FRACTION = 0.2
"""Minimum common prefix of two prompts, in tokens and as a share of the longer one: below either, forking a cache costs
more than it saves."""


def is_sharing_worthwhile(shared: int, longest: int) -> bool:
    """Whether to prefill a common prefix of ``shared`` tokens once, for prompts of up to ``longest`` tokens."""
    return shared >= max(_MIN_SHARED_TOKENS, _MIN_SHARED_FRACTION * longest)


def group_by_prefix(requests: Sequence[Request]) -> list[list[int]]:
    """Group requests by common prefix.

    Returns:
        Indices into ``requests``, each once. A group is in lexicographic order of token ids: each prompt shares with
        its predecessor at least as many tokens as with any earlier one, and :func:`is_sharing_worthwhile` holds for
        the two.
    """
    ids = [array("i", request.input_ids) for request in requests]
    groups: list[list[int]] = []
    for index in sorted(range(len(ids)), key=ids.__getitem__):
        previous = ids[groups[-1][-1]] if groups else array("i")
        longest = max(len(previous), len(ids[index]))
        if is_sharing_worthwhile(common_prefix_length(previous, ids[index]), longest):
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of leading tokens that two prompts have in common."""
    size = min(len(a), len(b))
    differs = np.asarray(a[:size], dtype=np.int64) != np.asarray(b[:size], dtype=np.int64)
    return int(differs.argmax()) if differs.any() else size
