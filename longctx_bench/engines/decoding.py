"""Greedy decoding of a batch: prompts prefilled without padding where that pays, then token by token together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from longctx_bench.engines.base import Settled
from longctx_bench.engines.prefill import can_merge, merged
from longctx_bench.records import Request


def eos_ids(model: PreTrainedModel) -> frozenset[int]:
    """Return the token ids at which ``model.generate`` would stop."""
    generation = model.generation_config.eos_token_id if model.generation_config is not None else None
    stop = generation if generation is not None else model.config.eos_token_id
    return frozenset(stop if isinstance(stop, list) else [] if stop is None else [stop])


@dataclass
class _Row:
    """One example while it is being decoded."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    reason: str = ""
    text: str = ""


@dataclass
class Decoder:
    """Decodes batches with one model and tokenizer."""

    model: PreTrainedModel
    tokenizer: Any
    eos: frozenset[int]
    alone_from: int
    """Prompts at least this long are prefilled one by one: a padding mask costs more than batching gains."""

    @torch.inference_mode()
    def decode(self, batch: Sequence[Request], settled: Settled, chunk: int) -> list[tuple[str, int, str]]:
        """Continue every request until its end token, its budget, or until its score is settled.

        Args:
            batch: requests; shorter prompts are padded on the left.
            settled: asked after every token of every unfinished example.
            chunk: prompt tokens of each example per forward pass of the prefill.

        Returns:
            Text without special tokens, number of new tokens (the end token counts) and finish reason, in order.
        """
        logits, mask, cache = self._start(batch, chunk)
        rows = [_Row(request) for request in batch]
        active = list(rows)
        while True:
            chosen = self._allowed(logits[:, -1], active).argmax(dim=-1)
            keep = [place for place, row in enumerate(active) if not self._advance(row, int(chosen[place]), settled)]
            if not keep:
                return [(row.text, len(row.tokens), row.reason) for row in rows]
            if len(keep) < len(active):
                # Finished examples leave the batch: their keys and values need not be read again.
                index = torch.tensor(keep, device=chosen.device)
                cache.batch_select_indices(index)
                chosen = chosen[index]
                mask = None if mask is None else mask[index]
                active = [active[place] for place in keep]
            logits, mask = self._step(chosen, mask, cache)

    def _allowed(self, logits: torch.Tensor, rows: Sequence[_Row]) -> torch.Tensor:
        """Rule out end and stop tokens ``[rows, vocabulary]`` for examples that must not end yet."""
        for place, row in enumerate(rows):
            if len(row.tokens) < row.request.min_new_tokens:
                logits[place, list(self.eos | row.request.stop_ids)] = -torch.inf
        return logits

    def _start(self, batch: Sequence[Request], chunk: int) -> tuple[torch.Tensor, torch.Tensor | None, DynamicCache]:
        """Prefill a batch; return the last logits ``[batch, 1, vocabulary]``, the mask and the filled cache."""
        ids, mask = self._padded(batch)
        cache = self._empty_cache()
        if mask is None or ids.shape[1] < self.alone_from or not can_merge(cache):
            return self._prefill(ids, mask, cache, chunk), mask, cache
        caches = [self._empty_cache() for _ in batch]
        alone = zip(batch, caches, strict=True)
        logits = [self._prefill(self._padded([request])[0], None, own, chunk) for request, own in alone]
        return torch.cat(logits), mask, merged(caches, ids.shape[1])

    def _empty_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config)

    def _padded(self, batch: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return ids ``[batch, longest]`` and the attention mask, which is None when nothing is padded."""
        longest = max(len(request.input_ids) for request in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros(len(batch), longest, dtype=torch.long)
        for row, request in enumerate(batch):
            ids[row, longest - len(request.input_ids) :] = torch.tensor(list(request.input_ids))
            mask[row, longest - len(request.input_ids) :] = 1
        padded = not bool(mask.all())
        return ids.to(self.model.device), mask.to(self.model.device) if padded else None

    def _prefill(self, ids: torch.Tensor, mask: torch.Tensor | None, cache: DynamicCache, chunk: int) -> torch.Tensor:
        """Fill the cache; return the logits of the last position only, ``[batch, 1, vocabulary]``."""
        positions = _positions(ids, mask)
        for start in range(0, ids.shape[1], chunk):
            end = min(start + chunk, ids.shape[1])
            output = self.model(
                input_ids=ids[:, start:end],
                attention_mask=None if mask is None else mask[:, :end],
                position_ids=positions[:, start:end],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits  # type: ignore[no-any-return]

    def _step(
        self, chosen: torch.Tensor, mask: torch.Tensor | None, cache: DynamicCache
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        past = cache.get_seq_length()
        if mask is None:
            positions = torch.full((len(chosen), 1), past, device=chosen.device)
        else:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            positions = mask.sum(dim=1, keepdim=True) - 1
        output = self.model(
            input_ids=chosen[:, None],
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits, mask

    def _advance(self, row: _Row, token: int, settled: Settled) -> bool:
        """Add a token to an example; return True when the example is finished."""
        row.tokens.append(token)
        row.text = self.tokenizer.decode(row.tokens, skip_special_tokens=True)
        if token in self.eos:
            row.reason = "eos"
        elif token in row.request.stop_ids:
            row.reason = "stop"
        elif settled(row.request.example_id, row.text):
            row.reason = "settled"
        elif len(row.tokens) >= row.request.max_new_tokens:
            row.reason = "length"
        return bool(row.reason)


def _positions(ids: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return position ids ``[batch, tokens]`` that start at 0 behind the padding."""
    if mask is None:
        return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape[0], -1)
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
