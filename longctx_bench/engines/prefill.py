"""Bringing prompts that were prefilled one by one into one left-padded cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def can_merge(cache: DynamicCache) -> bool:
    """Tell whether every layer keeps all keys: sliding windows have no common length to pad to."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def merged(caches: Sequence[DynamicCache], length: int) -> DynamicCache:
    """Join caches of single prompts, each padded on the left to ``length`` positions.

    Args:
        caches: one a prompt, batch size 1, emptied layer by layer so that memory is held once.
        length: positions of the longest prompt.

    Returns:
        A cache of batch size ``len(caches)``; what lies in the padding must be masked.
    """
    together = caches[0]
    for index, layer in enumerate(together.layers):
        for name in ("keys", "values"):
            own: list[torch.Tensor] = []
            for cache in caches:
                states = getattr(cache.layers[index], name)
                own.append(functional.pad(states, (0, 0, length - states.shape[2], 0)))
                setattr(cache.layers[index], name, states[:, :, :0])
            setattr(layer, name, torch.cat(own))
    return together
