"""Examples that are decoded beside each other: their rows, the cache that holds what was read, and what it is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import torch
from transformers import DynamicCache, PreTrainedModel

from longctx_bench.engines.batching import num_total_tokens
from longctx_bench.engines.hf.cache_ops import Piece, can_merge, is_whole, keys_are_final, squeeze
from longctx_bench.engines.hf.cuda_graph import supports_cuda_graph
from longctx_bench.engines.hf.model_runner import MOST_WRONG
from longctx_bench.engines.hf.prefill_scheduler import MOST_LOGITS
from longctx_bench.engines.hf.prompt_lookup import Lookup
from longctx_bench.engines.request_state import Row


@dataclass
class Beside:
    """Examples and what of them the cache holds, all at its right end."""

    rows: list[Row]
    cache: DynamicCache
    seen: torch.Tensor
    """``[rows, positions]``: False where the cache holds padding, or a guess that was wrong."""
    lookups: list[Lookup | None]
    """What guesses each row's continuation; None where a wrong guess could not be taken back."""
    replayed: bool
    """Whether they are decoded token by token, by a step that is recorded once."""

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        rows: list[Row],
        cache: DynamicCache,
        pads: list[int],
        known: Mapping[int, Lookup | None],
    ) -> Self:
        """Put together what was read.

        Args:
            model: that read it.
            rows: may be finished already.
            cache: a row for each.
            pads: how much of each row, on its left, is padding.
            known: what guessed before, by the row's identity.
        """
        places = torch.arange(cache.get_seq_length(), device=model.device)
        seen = places >= torch.tensor(pads, device=model.device)[:, None]
        # Wrong guesses are cut off again, and a recorded step knows no lengths: both want keys that stay as they are.
        free = can_merge(cache) and keys_are_final(model)
        replayed = free and supports_cuda_graph(model)
        # Another attention than torch's may count distances in slots of the cache, of which wrong guesses take some.
        holes = free and not replayed and model.config._attn_implementation == "sdpa"
        lookups = [
            (known.get(id(row)) or Lookup([*row.request.input_ids, *row.tokens])) if holes else None for row in rows
        ]
        return cls(rows, cache, seen, lookups, replayed)

    def known(self) -> dict[int, Lookup | None]:
        """Return what guesses, by the row's identity."""
        return {id(row): lookup for row, lookup in zip(self.rows, self.lookups, strict=True)}

    def taken(self) -> list[tuple[Row, Piece]]:
        """Take unfinished examples apart, to be joined with others."""
        if not is_whole(self.seen):
            self.seen = squeeze(self.cache, self.seen)
        past = self.seen.shape[1]
        starts = (past - self.seen.sum(dim=1)).tolist()
        pieces = [Piece(self.cache, place, start, past) for place, start in enumerate(starts)]
        return [(row, piece) for row, piece in zip(self.rows, pieces, strict=True) if not row.reason]

    def unfinished(self, idle: float) -> Self | None:
        """Drop examples that are finished, when they are more than a share: their keys need not be read again."""
        keep = [place for place, row in enumerate(self.rows) if not row.reason]
        if not keep:
            return None
        if len(self.rows) - len(keep) <= idle * len(self.rows):
            return self
        self.cache.batch_select_indices(torch.tensor(keep, device=self.seen.device))
        rows, lookups = [self.rows[place] for place in keep], [self.lookups[place] for place in keep]
        return type(self)(rows, self.cache, self.seen[keep], lookups, self.replayed)

    def guesses(self, words: int) -> list[list[int]]:
        """Guess what follows in each row, as far as the cache has room for guesses, of a vocabulary of ``words``."""
        if not any(self.lookups):
            return [[]] * len(self.rows)
        wrong = self.seen.shape[1] - int(self.seen.sum(dim=1).max())
        if self._room() < MOST_WRONG // 2 and wrong >= MOST_WRONG // 2:
            self.seen = squeeze(self.cache, self.seen)
        most = min(self._room(), MOST_LOGITS // (len(self.rows) * words) - 1)
        return [
            [] if lookup is None or row.reason else lookup.guess(min(most, row.left - 1))
            for row, lookup in zip(self.rows, self.lookups, strict=True)
        ]

    def _room(self) -> int:
        """Return for how many tokens there is room behind the one that is read next."""
        return max(num_total_tokens(row.request) for row in self.rows) + MOST_WRONG - self.seen.shape[1] - 1
