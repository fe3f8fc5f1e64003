"""A KV cache with room for what will be decoded: a new token is written into it, and nothing else is copied."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

_SPARE = 128
"""Tokens of room to add where the first room was too small."""


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, at the beginning of tensors that are longer than they."""

    def __init__(self, room: int) -> None:
        """Say for how many tokens in all there will be room."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        self._buffers: dict[str, torch.Tensor] = {}
        self._place: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add ``[rows, heads, tokens, head_dim]`` and return all there is, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if self._place is not None:
            self.keys.index_copy_(2, self._place, key_states)
            self.values.index_copy_(2, self._place, value_states)
            return self.keys, self.values
        self.keys = self._joined("keys", self.keys, key_states)
        self.values = self._joined("values", self.values, value_states)
        return self.keys, self.values

    def put(self, keys: torch.Tensor | None, values: torch.Tensor | None) -> None:
        """Hold other keys and values, or none; those from before are no longer held."""
        self._buffers.clear()
        self.keys, self.values = keys, values
        if keys is None:
            self.is_initialized = False

    def fix(self, room: int, place: torch.Tensor) -> None:
        """Stay in memory where it is from now on, with ``room`` tokens; one more is written where ``place`` says.

        Until :meth:`loose`, all of the room is returned as keys and values, and what was not written yet is zero.
        """
        self._buffers.clear()
        self.keys, self.values = (self._longer(held, room) for held in (self.keys, self.values))
        self._place = place

    def loose(self, tokens: int) -> None:
        """Be an ordinary layer again, that holds the first ``tokens``."""
        assert self.keys is not None
        assert self.values is not None
        self._place = None
        self.put(self.keys[:, :, :tokens], self.values[:, :, :tokens])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some of the rows."""
        self._buffers.clear()
        super().batch_select_indices(indices)

    @staticmethod
    def _longer(held: torch.Tensor | None, room: int) -> torch.Tensor:
        assert held is not None
        longer = held.new_empty(*held.shape[:2], room, held.shape[3])
        longer[:, :, : held.shape[2]] = held
        # What lies in fresh memory may be no number, which a weight of zero does not make zero.
        longer[:, :, held.shape[2] :] = 0
        return longer

    def _joined(self, name: str, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        past = held.shape[-2] if held.numel() else 0
        end = past + new.shape[-2]
        buffer = self._buffers.get(name)
        # What is held may have been replaced from outside.
        if buffer is None or end > buffer.shape[-2] or (past and held.data_ptr() != buffer.data_ptr()):
            size = max(self._room, end + _SPARE if past else end)
            buffer = new.new_empty(*new.shape[:-2], size, new.shape[-1])
            if past:
                buffer[..., :past, :] = held
            self._buffers[name] = buffer
        buffer[..., past:end, :] = new
        return buffer[..., :end, :]


def roomy_cache(config: PretrainedConfig, room: int) -> DynamicCache:
    """Return an empty cache for a model; layers that keep every token have ``room`` for so many."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
