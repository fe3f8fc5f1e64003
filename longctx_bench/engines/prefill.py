"""Bringing prompts that were read one by one, or to different ends, into one left-padded cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

_MOVING = ("dynamic", "longrope")
"""Rotary types whose frequencies depend on the longest position of a forward pass."""


@dataclass(frozen=True)
class Piece:
    """The positions ``start`` to ``stop`` of one row of a cache: what one example has read."""

    cache: DynamicCache
    row: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        """Return how many positions it has."""
        return self.stop - self.start


def can_merge(cache: DynamicCache) -> bool:
    """Tell whether every layer keeps all keys: sliding windows have no common length to pad or to cut to."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def keys_are_final(model: PreTrainedModel) -> bool:
    """Tell whether a token's key is the same whatever is read after it in the same pass."""
    rotary = getattr(model.base_model, "rotary_emb", None)
    kinds = getattr(rotary, "rope_type", "default")
    found = kinds.values() if isinstance(kinds, dict) else [kinds]
    return not any(moving in str(kind) for kind in found for moving in _MOVING)


def branch(cache: DynamicCache, tokens: int, fresh: DynamicCache) -> DynamicCache:
    """Fill a fresh cache with the first ``tokens`` positions of another, which stays as it is."""
    for index, layer in enumerate(cache.layers):
        assert isinstance(layer, DynamicLayer)
        if tokens and layer.keys is not None and layer.values is not None:
            fresh.update(layer.keys[:, :, :tokens], layer.values[:, :, :tokens], index)
    return fresh


def merged(pieces: Sequence[Piece]) -> DynamicCache:
    """Join pieces of caches, each padded on the left to the longest; memory is held once, layer by layer.

    Args:
        pieces: at least one; their caches are empty afterwards.

    Returns:
        A cache of batch size ``len(pieces)``; what lies in the padding must be masked.
    """
    longest = max(piece.length for piece in pieces)
    together = pieces[0].cache
    caches = {id(piece.cache): piece.cache for piece in pieces}.values()
    for index, layer in enumerate(together.layers):
        for name in ("keys", "values"):
            own: list[torch.Tensor] = []
            for piece in pieces:
                states = getattr(piece.cache.layers[index], name)
                states = states[piece.row : piece.row + 1, :, piece.start : piece.stop]
                own.append(functional.pad(states, (0, 0, longest - piece.length, 0)))
            for cache in caches:
                states = getattr(cache.layers[index], name)
                setattr(cache.layers[index], name, states[:, :, :0])
            setattr(layer, name, torch.cat(own) if len(own) > 1 else own[0])
    return together
