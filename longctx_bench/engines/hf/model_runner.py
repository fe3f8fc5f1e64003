"""Reading on: prompts and tokens go through the model into a cache, and the likeliest tokens come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from longctx_bench.engines.base import StoppingCriterion
from longctx_bench.engines.batching import num_total_tokens
from longctx_bench.engines.hf.attention_cpu import cpu_attention
from longctx_bench.engines.hf.kv_cache import roomy_cache
from longctx_bench.engines.hf.padding import pad_token_ids, to_device_async
from longctx_bench.engines.request_state import Row

MOST_WRONG = 64
"""Positions that wrong guesses may take in a cache until it is squeezed: they are masked, but read again each time."""


def eos_ids(model: PreTrainedModel) -> frozenset[int]:
    """Return the token ids at which ``model.generate`` would stop."""
    generation = model.generation_config.eos_token_id if model.generation_config is not None else None
    stop = generation if generation is not None else model.config.eos_token_id
    return frozenset(stop if isinstance(stop, list) else [] if stop is None else [stop])


@dataclass
class Reader:
    """A model, and what says which of its tokens are an answer's."""

    model: PreTrainedModel
    tokenizer: Any
    eos: frozenset[int]

    @property
    def words(self) -> int:
        """Return the size of the vocabulary."""
        return int(self.model.config.get_text_config().vocab_size)

    def empty_cache(self, rows: Sequence[Row] = ()) -> DynamicCache:
        """Return a cache with room for prompts, answers and wrong guesses."""
        room = max((num_total_tokens(row.request) for row in rows), default=0)
        return roomy_cache(self.model.config, room + MOST_WRONG)

    def prefill(
        self, rows: list[Row], drafts: list[list[int]], pads: list[int], cache: DynamicCache, chunk: int
    ) -> torch.Tensor:
        """Fill a cache with prompts and drafts; return the logits ``[rows, longest draft + 1, words]`` of the ends.

        ``pads`` says how much padding is left of each prompt; what else is missing is filled up on the right.
        """
        device = self.model.device
        ends = [pad + len(row.request.input_ids) for pad, row in zip(pads, rows, strict=True)]
        read = [[*row.request.input_ids, *draft] for row, draft in zip(rows, drafts, strict=True)]
        ids = to_device_async(pad_token_ids(read, pads), device)
        whole = ids.shape[1]
        told = to_device_async(torch.arange(whole) >= torch.tensor(pads)[:, None], device) if any(pads) else None
        first = min(ends) - 1
        starts = range(cache.get_seq_length(), first + 1, chunk)
        for start in starts[:-1]:
            own = told if told is None else told[:, : start + chunk]
            self.feed(cache, ids[:, start : start + chunk], own, keep=1)
        logits = self.feed(cache, ids[:, starts[-1] :], told, keep=whole - first)
        if len(set(ends)) == 1:
            return logits
        behind = torch.arange(1 + max(map(len, drafts)))
        wanted = torch.tensor(ends)[:, None] - 1 - first + behind
        # A shorter draft than the longest may end with the row: what stands there is not looked at.
        wanted = to_device_async(wanted.clamp(max=whole - first - 1), device)
        return logits.gather(1, wanted[:, :, None].expand(-1, -1, logits.shape[-1]))

    def feed(
        self, cache: DynamicCache, ids: torch.Tensor, told: torch.Tensor | None, keep: int | torch.Tensor
    ) -> torch.Tensor:
        """Read on: tokens ``[rows, tokens]`` behind what the cache holds; return the last ``keep`` logits of each.

        A tensor as ``keep`` names the tokens by their places in ``ids``.

        ``told`` is ``[rows, all tokens]``: False where neither cache nor ``ids`` holds anything to attend to; None
        where they do everywhere.
        """
        if told is None:
            past = cache.get_seq_length()
            position_ids = torch.arange(past, past + ids.shape[1], device=ids.device)[None]
        else:
            position_ids = (told.cumsum(dim=1) - 1)[:, -ids.shape[1] :].clamp(min=0)
        with cpu_attention(self.model):
            output = self.model(
                input_ids=ids,
                attention_mask=told if told is None else told.long(),
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=keep,
            )
        return output.logits  # type: ignore[no-any-return]

    def chosen(
        self, rows: list[Row], logits: torch.Tensor, guesses: list[list[int]], settled: StoppingCriterion
    ) -> list[int]:
        """Add to each example the likeliest tokens for as long as its guess was right, and the one after.

        Args:
            rows: examples; to those that are finished nothing is added.
            logits: ``[rows, longest guess + 1, vocabulary]``, the first of each before its guess.
            guesses: the tokens that were read behind each example.
            settled: asked after every token of every unfinished example.

        Returns:
            How many tokens of each guess were right and may stay in the cache.
        """
        for place, row in enumerate(rows):
            bound = row.request.min_new_tokens - len(row.tokens)
            if bound > 0:
                logits[place, :bound, list(self.eos | row.request.stop_ids)] = -torch.inf
        likeliest = logits.argmax(dim=-1).tolist()
        accepted = []
        for row, tokens, guess in zip(rows, likeliest, guesses, strict=True):
            right = 0
            while not row.advance(tokens[right], self.tokenizer, self.eos, settled) and guess[right : right + 1] == [
                tokens[right]
            ]:
                right += 1
            accepted.append(right)
        return accepted
