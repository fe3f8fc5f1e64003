"""Which requests begin alike: they are put side by side, so that what they share is read once."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from longctx_bench.core.types import Request

_LEAST_TOKENS = 32
_LEAST_SHARE = 0.2
"""Of the longer prompt; below that, a cache and its mask cost more than they save."""


def worth_sharing(shared: int, longest: int) -> bool:
    """Tell whether reading a common beginning of ``shared`` tokens once pays, of prompts up to ``longest`` tokens."""
    return shared >= max(_LEAST_TOKENS, _LEAST_SHARE * longest)


def alike(requests: Sequence[Request]) -> list[list[int]]:
    """Group requests by their beginnings.

    Returns:
        Places in ``requests``, each once. A group is in the order of its token ids: each prompt shares with the one
        before it at least as much as with any earlier one, and what the two share is :func:`worth_sharing`.
    """
    ids = [array("i", request.input_ids) for request in requests]
    groups: list[list[int]] = []
    for place in sorted(range(len(ids)), key=ids.__getitem__):
        before = ids[groups[-1][-1]] if groups else array("i")
        if worth_sharing(common(before, ids[place]), max(len(before), len(ids[place]))):
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two prompts have in common at their beginning."""
    size = min(len(one), len(other))
    differ = np.asarray(one[:size], dtype=np.int64) != np.asarray(other[:size], dtype=np.int64)
    return int(differ.argmax()) if differ.any() else size
