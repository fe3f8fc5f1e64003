"""The KV cache: keys and values in preallocated memory, with append, fork, concat and compact.

Appending a token copies nothing else. A fork is how a prompt reuses the prefix of another one; concat joins prompts
that were prefilled apart into one left-padded batch; compact drops the slots of rejected draft tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn import functional
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

_SPARE_TOKENS = 128
"""Capacity to add where the first one was too small."""


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer, ``[rows, heads, tokens, head_dim]``: views of the start of longer buffers."""

    def __init__(self, capacity: int) -> None:
        """Set how many tokens fit before the first reallocation."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._capacity = capacity
        self._buffers: dict[str, torch.Tensor] = {}
        self._position: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[rows, heads, tokens, head_dim]``; return all keys and values, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if self._position is not None:
            self.keys.index_copy_(2, self._position, key_states)
            self.values.index_copy_(2, self._position, value_states)
            return self.keys, self.values
        self.keys = self._append("keys", self.keys, key_states)
        self.values = self._append("values", self.values, value_states)
        return self.keys, self.values

    @property
    def is_allocated(self) -> bool:
        """Whether the layer holds any memory."""
        return bool(self._buffers) or (self.keys is not None and self.keys.numel() > 0)

    def set_states(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> None:
        """Replace keys and values, or free them (None)."""
        self._buffers.clear()
        self.keys, self.values = keys, values
        if keys is None:
            self.is_initialized = False

    def freeze(self, capacity: int, position: torch.Tensor) -> None:
        """Stay at a fixed address and length, as a CUDA graph needs it, until :meth:`unfreeze`.

        Meanwhile :meth:`update` writes one token at the slot in ``position`` and returns all ``capacity`` slots; those
        not written yet are zero.
        """
        self._buffers.clear()
        self.keys, self.values = (self._extend(states, capacity) for states in (self.keys, self.values))
        self._position = position

    def unfreeze(self, num_tokens: int) -> None:
        """Be an ordinary layer again, with the first ``num_tokens`` tokens."""
        assert self.keys is not None
        assert self.values is not None
        self._position = None
        self.set_states(self.keys[:, :, :num_tokens], self.values[:, :, :num_tokens])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some of the rows."""
        self._buffers.clear()
        super().batch_select_indices(indices)

    @staticmethod
    def _extend(states: torch.Tensor | None, capacity: int) -> torch.Tensor:
        assert states is not None
        extended = states.new_empty(*states.shape[:2], capacity, states.shape[3])
        extended[:, :, : states.shape[2]] = states
        # Fresh memory may hold NaN, which an attention weight of zero does not make zero.
        extended[:, :, states.shape[2] :] = 0
        return extended

    def _append(self, name: str, states: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        past = states.shape[-2] if states.numel() else 0
        end = past + new.shape[-2]
        buffer = self._buffers.get(name)
        # The states may have been replaced from outside, by transformers' own cache methods.
        if buffer is None or end > buffer.shape[-2] or (past and states.data_ptr() != buffer.data_ptr()):
            size = max(self._capacity, end + _SPARE_TOKENS if past else end)
            buffer = new.new_empty(*new.shape[:-2], size, new.shape[-1])
            if past:
                buffer[..., :past, :] = states
            self._buffers[name] = buffer
        buffer[..., past:end, :] = new
        return buffer[..., :end, :]


@dataclass(frozen=True)
class CacheSlice:
    """The tokens ``start`` to ``stop`` of one row of a cache: those of one request."""

    cache: KVCache
    row: int
    start: int
    stop: int

    @property
    def num_tokens(self) -> int:
        """Return how many tokens it has."""
        return self.stop - self.start


class KVCache(DynamicCache):
    """The KV cache of a batch; transformers' models append to it by ``update``.

    Layers with a sliding window are transformers' own: they support append and nothing else here.
    """

    layers: list[Any]

    def __init__(self, config: PretrainedConfig, capacity: int) -> None:
        """Make an empty cache.

        Args:
            config: of the model.
            capacity: tokens per row to allocate with the first ones; more are allocated when they are needed.
        """
        super().__init__(config=config)
        self._config = config
        self.layers = [PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in self.layers]

    @property
    def num_tokens(self) -> int:
        """Return the tokens per row, padding included."""
        return int(self.get_seq_length())

    @property
    def supports_concat(self) -> bool:
        """Whether every layer keeps all tokens; sliding windows have no common length to pad or to cut to."""
        return all(isinstance(layer, PreallocatedLayer) for layer in self.layers)

    @property
    def is_allocated(self) -> bool:
        """Whether any layer holds memory."""
        return any(layer.is_allocated for layer in self.layers)

    def append(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[rows, heads, tokens, head_dim]`` to a layer; return all its keys and values, as views."""
        return self.update(keys, values, layer)

    def fork(self, num_tokens: int, capacity: int) -> KVCache:
        """Return a copy of the first ``num_tokens`` tokens, with room for ``capacity``; this cache stays as it is."""
        fork = KVCache(self._config, capacity)
        for index, layer in enumerate(self.layers):
            if num_tokens and layer.keys is not None and layer.values is not None:
                fork.append(layer.keys[:, :, :num_tokens], layer.values[:, :, :num_tokens], index)
        return fork

    @classmethod
    def concat(cls, slices: Sequence[CacheSlice], capacity: int, keep: KVCache | None = None) -> Self:
        """Join slices into one batch, left-padded to the longest; memory is held twice for one layer at a time.

        Args:
            slices: at least one; their caches are freed.
            capacity: of the result.
            keep: one of the slices' caches that is not freed.

        Returns:
            A cache with ``len(slices)`` rows; its padding must be masked.
        """
        longest = max(each.num_tokens for each in slices)
        result = cls(slices[0].cache._config, capacity)
        sources = {id(each.cache): each.cache for each in slices if each.cache is not keep}.values()
        for index, layer in enumerate(result.layers):
            keys = _concat_rows([_slice_states(each, index, "keys", longest) for each in slices])
            values = _concat_rows([_slice_states(each, index, "values", longest) for each in slices])
            for source in sources:
                source.layers[index].set_states(None, None)
            layer.lazy_initialization(keys, values)
            layer.set_states(keys, values)
        return result

    def compact(self, mask: torch.Tensor) -> torch.Tensor:
        """Drop tokens, layer by layer; what is left is aligned at the right end of each row.

        Args:
            mask: bool ``[rows, tokens]``, False where a token is dropped.

        Returns:
            The mask of the compacted cache: False where shorter rows are padded on the left.
        """
        counts = mask.sum(dim=1)
        longest = int(counts.max())
        for layer in self.layers:
            kept = []
            for states in (layer.keys, layer.values):
                rows = [states[row : row + 1, :, mask[row]] for row in range(len(mask))]
                kept.append(_concat_rows([functional.pad(row, (0, 0, longest - row.shape[2], 0)) for row in rows]))
            layer.set_states(*kept)
        return torch.arange(longest, device=mask.device) >= (longest - counts)[:, None]

    def freeze(self, capacity: int, position: torch.Tensor) -> None:
        """Freeze all layers (:meth:`PreallocatedLayer.freeze`)."""
        for layer in self.layers:
            layer.freeze(capacity, position)

    def unfreeze(self, num_tokens: int) -> None:
        """Unfreeze all layers, with the first ``num_tokens`` tokens."""
        for layer in self.layers:
            layer.unfreeze(num_tokens)


def is_contiguous(mask: torch.Tensor) -> bool:
    """Whether bool ``[rows, tokens]`` masks nothing but padding on the left of rows."""
    return not bool((mask[:, 1:] < mask[:, :-1]).any()) and bool(mask[:, -1].all())


def _slice_states(source: CacheSlice, index: int, name: str, longest: int) -> torch.Tensor:
    states: torch.Tensor = getattr(source.cache.layers[index], name)
    states = states[source.row : source.row + 1, :, source.start : source.stop]
    return functional.pad(states, (0, 0, longest - source.num_tokens, 0))


def _concat_rows(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(rows) if len(rows) > 1 else rows[0]
