"""Bringing prompts that were read one by one, or to different ends, into one left-padded cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from longctx_bench.engines.hf.kv_cache import RoomyLayer

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
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)


def keys_are_final(model: PreTrainedModel) -> bool:
    """Tell whether a token's key is the same whatever is read after it in the same pass."""
    rotary = getattr(model.base_model, "rotary_emb", None)
    kinds = getattr(rotary, "rope_type", "default")
    found = kinds.values() if isinstance(kinds, dict) else [kinds]
    return not any(moving in str(kind) for kind in found for moving in _MOVING)


def branch(cache: DynamicCache, tokens: int, fresh: DynamicCache) -> DynamicCache:
    """Fill a fresh cache with the first ``tokens`` positions of another, which stays as it is."""
    for index, layer in enumerate(cache.layers):
        assert isinstance(layer, RoomyLayer)
        if tokens and layer.keys is not None and layer.values is not None:
            fresh.update(layer.keys[:, :, :tokens], layer.values[:, :, :tokens], index)
    return fresh


def merged(pieces: Sequence[Piece], into: DynamicCache, kept: DynamicCache | None = None) -> DynamicCache:
    """Join pieces of caches, each padded on the left to the longest; memory is held once, layer by layer.

    Args:
        pieces: at least one; their caches are empty afterwards.
        into: an empty cache.
        kept: one of the pieces' caches that is not emptied, if any.

    Returns:
        A cache of batch size ``len(pieces)``; what lies in the padding must be masked.
    """
    longest = max(piece.length for piece in pieces)
    caches = {id(piece.cache): piece.cache for piece in pieces if piece.cache is not kept}.values()
    for index, layer in enumerate(into.layers):
        keys = _joined([_states(piece, index, "keys", longest) for piece in pieces])
        values = _joined([_states(piece, index, "values", longest) for piece in pieces])
        for cache in caches:
            other = cache.layers[index]
            assert isinstance(other, RoomyLayer)
            other.put(None, None)
        assert isinstance(layer, RoomyLayer)
        layer.lazy_initialization(keys, values)
        layer.put(keys, values)
    return into


def is_whole(seen: torch.Tensor) -> bool:
    """Tell whether nothing is missing between a row's first position in ``[rows, positions]`` and the right end."""
    return not bool((seen[:, 1:] < seen[:, :-1]).any()) and bool(seen[:, -1].all())


def squeeze(cache: DynamicCache, seen: torch.Tensor) -> torch.Tensor:
    """Drop positions that nothing may attend to, layer by layer; what is left stands at the right end of each row.

    Args:
        cache: whose layers all are :class:`RoomyLayer`.
        seen: ``[rows, positions]``, False where a position is dropped.

    Returns:
        The same for the squeezed cache: False where shorter rows are padded on the left.
    """
    counts = seen.sum(dim=1)
    longest = int(counts.max())
    for layer in cache.layers:
        assert isinstance(layer, RoomyLayer)
        kept = []
        for states in (layer.keys, layer.values):
            assert states is not None
            own = [states[row : row + 1, :, seen[row]] for row in range(len(seen))]
            kept.append(_joined([functional.pad(row, (0, 0, longest - row.shape[2], 0)) for row in own]))
        layer.put(*kept)
    return torch.arange(longest, device=seen.device) >= (longest - counts)[:, None]


def _states(piece: Piece, index: int, name: str, longest: int) -> torch.Tensor:
    states: torch.Tensor = getattr(piece.cache.layers[index], name)
    states = states[piece.row : piece.row + 1, :, piece.start : piece.stop]
    return functional.pad(states, (0, 0, longest - piece.length, 0))


def _joined(own: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(own) if len(own) > 1 else own[0]
