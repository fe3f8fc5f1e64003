"""The running batch: the requests being decoded, their KV cache and its attention mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

from longctx_bench.engines.batching import num_total_tokens
from longctx_bench.engines.hf.cuda_graph import CudaGraphDecoder
from longctx_bench.engines.hf.kv_cache import CacheSlice, KVCache, is_contiguous
from longctx_bench.engines.request_state import RequestState

MAX_REJECTED_SLOTS = 64
"""Cache slots that rejected draft tokens may take until the cache is compacted: they are masked, but still read."""


@dataclass(eq=False)
class RunningBatch:
    """Requests, a row of the cache each; their tokens are aligned at its right end."""

    states: list[RequestState]
    cache: KVCache
    kv_mask: torch.Tensor
    """``[rows, tokens]``: False at padding and at rejected draft tokens."""
    graph: CudaGraphDecoder | None = None
    """Decodes this batch while it is open; the cache is frozen meanwhile."""
    num_graph_steps: int = 0
    """Steps of the open graph whose tokens were taken."""

    @classmethod
    def from_cache(cls, states: list[RequestState], cache: KVCache, left_pads: list[int], device: torch.device) -> Self:
        """Make a batch of prefilled requests; ``left_pads`` is the padding on the left of each row."""
        slots = torch.arange(cache.num_tokens, device=device)
        return cls(states, cache, slots >= torch.tensor(left_pads, device=device)[:, None])

    def unfinished(self) -> list[RequestState]:
        """Return the requests that are still decoded."""
        return [state for state in self.states if not state.is_finished]

    def take_slices(self) -> list[tuple[RequestState, CacheSlice]]:
        """Return the unfinished requests with their parts of the cache, to be joined with others."""
        if not is_contiguous(self.kv_mask):
            self.compact()
        past = self.kv_mask.shape[1]
        starts = (past - self.kv_mask.sum(dim=1)).tolist()
        slices = [CacheSlice(self.cache, row, start, past) for row, start in enumerate(starts)]
        return [pair for pair in zip(self.states, slices, strict=True) if not pair[0].is_finished]

    def has_idle_rows(self, max_finished_share: float) -> bool:
        """Whether all requests are finished, or more than a share of them."""
        finished = sum(state.is_finished for state in self.states)
        return finished == len(self.states) or finished > max_finished_share * len(self.states)

    def drop_finished(self) -> bool:
        """Drop the rows of finished requests; return whether any row is left."""
        rows = [row for row, state in enumerate(self.states) if not state.is_finished]
        if rows:
            self.cache.batch_select_indices(torch.tensor(rows, device=self.kv_mask.device))
        self.states, self.kv_mask = [self.states[row] for row in rows], self.kv_mask[rows]
        return bool(rows)

    def extend_mask(self, width: int, accepted: list[int]) -> None:
        """Account for a pass of ``width`` tokens per row: one token and a draft of which ``accepted`` were right."""
        mask = torch.arange(width) <= torch.tensor(accepted)[:, None]
        self.kv_mask = torch.cat([self.kv_mask, mask.to(self.kv_mask.device)], dim=1)

    def compact(self) -> None:
        """Drop the slots of rejected draft tokens and needless padding."""
        self.kv_mask = self.cache.compact(self.kv_mask)

    def make_room_for_drafts(self) -> int:
        """Compact the cache if rejected drafts have used up its spare slots; return the draft tokens that fit."""
        rejected = self.kv_mask.shape[1] - int(self.kv_mask.sum(dim=1).max())
        if self._num_free_slots() < MAX_REJECTED_SLOTS // 2 and rejected >= MAX_REJECTED_SLOTS // 2:
            self.compact()
        return self._num_free_slots()

    def close_graph(self) -> None:
        """End CUDA-graph decoding: the cache is an ordinary one again, with the tokens that were taken."""
        if self.graph is not None:
            self.kv_mask = self.graph.close(self.num_graph_steps)
            self.graph, self.num_graph_steps = None, 0

    def _num_free_slots(self) -> int:
        """Return the slots behind the next token."""
        longest = max(num_total_tokens(state.request) for state in self.states)
        return longest + MAX_REJECTED_SLOTS - self.kv_mask.shape[1] - 1
