"""The model runner: forward passes for prefill and decode, which return greedy tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from transformers import PreTrainedModel

from longctx_bench.engines.batching import num_total_tokens
from longctx_bench.engines.hf.attention_cpu import cpu_attention
from longctx_bench.engines.hf.cuda_graph import CudaGraphDecoder, decode_attention_kernel, supports_cuda_graph
from longctx_bench.engines.hf.kv_cache import KVCache
from longctx_bench.engines.hf.padding import AsyncTokens, pad_token_ids, to_device_async
from longctx_bench.engines.hf.running_batch import MAX_REJECTED_SLOTS, RunningBatch
from longctx_bench.engines.request_state import RequestState

_LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Rotary types whose frequencies depend on the longest position of a forward pass."""


def model_eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    """Return the token ids at which ``model.generate`` would stop."""
    generation = model.generation_config.eos_token_id if model.generation_config is not None else None
    stop = generation if generation is not None else model.config.eos_token_id
    return frozenset(stop if isinstance(stop, list) else [] if stop is None else [stop])


@dataclass(eq=False)
class PrefillStep:
    """Prompts to prefill in one pass, or in chunks; each may be followed by a draft that the pass verifies."""

    states: list[RequestState]
    drafts: list[list[int]]
    cache: KVCache
    """Empty, or a fork with the prefix of the only prompt."""
    max_tokens: int
    """Prompt tokens, of all rows together, per forward pass."""
    left_pads: list[int] = field(default_factory=list)
    """Padding on the left of each prompt; what else is missing is padded on the right."""


@dataclass(eq=False)
class DecodeStep:
    """One pass over the running batch: a token per row, and a draft behind it that the pass verifies."""

    batch: RunningBatch
    drafts: list[list[int]]
    use_graph: bool = False


Step = PrefillStep | DecodeStep


@dataclass
class ModelRunner:
    """Runs a model on the scheduler's steps."""

    model: PreTrainedModel
    eos_token_ids: frozenset[int]
    """End tokens, which are not chosen before a request's ``min_new_tokens``."""
    kernels: bool = True
    """Use this project's attention kernels; False: transformers' sdpa everywhere."""

    @property
    def device(self) -> torch.device:
        """Return the model's device."""
        return self.model.device

    @property
    def vocab_size(self) -> int:
        """Return the number of logits per token."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def uses_sdpa(self) -> bool:
        """Whether attention is transformers' sdpa; a method's own may count distances in cache slots."""
        return bool(self.model.config._attn_implementation == "sdpa")

    @property
    def supports_cuda_graph(self) -> bool:
        """Whether the decode step can be captured as a CUDA graph."""
        return supports_cuda_graph(self.model)

    @property
    def has_stable_keys(self) -> bool:
        """Whether a token's key does not depend on the tokens after it in the same pass."""
        rotary = getattr(self.model.base_model, "rotary_emb", None)
        rope_type = getattr(rotary, "rope_type", "default")
        types = rope_type.values() if isinstance(rope_type, dict) else [rope_type]
        return not any(name in str(each) for each in types for name in _LENGTH_DEPENDENT_ROPE)

    def cache_capacity(self, states: Sequence[RequestState]) -> int:
        """Return the cache slots per row for prompts, completions and rejected draft tokens."""
        return max((num_total_tokens(state.request) for state in states), default=0) + MAX_REJECTED_SLOTS

    def new_cache(self, states: Sequence[RequestState] = ()) -> KVCache:
        """Return an empty cache with room for requests."""
        return KVCache(self.model.config, self.cache_capacity(states))

    def execute(self, step: Step) -> AsyncTokens:
        """Run a step.

        Returns:
            Greedy tokens ``[rows, longest draft + 1]``: the successor of each row's last token, then of each token of
            its draft. They are on their way from the device; the cache of the step is filled.
        """
        if isinstance(step, PrefillStep):
            logits = self._prefill(step)
            return self._greedy_tokens(step.states, logits)
        if step.use_graph:
            return self._replay(step.batch)
        return self._greedy_tokens(step.batch.states, self._decode(step))

    def forward(
        self, cache: KVCache, ids: torch.Tensor, attention_mask: torch.Tensor | None, logits_to_keep: int | torch.Tensor
    ) -> torch.Tensor:
        """Run the model on tokens behind those in the cache, which it appends them to.

        Args:
            cache: of the same rows.
            ids: ``[rows, tokens]``.
            attention_mask: bool ``[rows, cached + new tokens]``, False at padding; None where there is none.
            logits_to_keep: the last so many tokens, or the indices of tokens in ``ids``.

        Returns:
            Logits ``[rows, kept tokens, vocab_size]``.
        """
        if attention_mask is None:
            past = cache.num_tokens
            position_ids = torch.arange(past, past + ids.shape[1], device=ids.device)[None]
        else:
            position_ids = (attention_mask.cumsum(dim=1) - 1)[:, -ids.shape[1] :].clamp(min=0)
        with cpu_attention(self.model) if self.kernels else nullcontext():
            output = self.model(
                input_ids=ids,
                attention_mask=attention_mask if attention_mask is None else attention_mask.long(),
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=logits_to_keep,
            )
        return output.logits  # type: ignore[no-any-return]

    def _prefill(self, step: PrefillStep) -> torch.Tensor:
        """Fill a cache with prompts and drafts; return the logits ``[rows, longest draft + 1, vocab_size]``."""
        pads = step.left_pads or [0] * len(step.states)
        chunk = max(1, step.max_tokens // len(step.states))
        ends = [pad + len(state.request.input_ids) for pad, state in zip(pads, step.states, strict=True)]
        rows = [[*state.request.input_ids, *draft] for state, draft in zip(step.states, step.drafts, strict=True)]
        ids = to_device_async(pad_token_ids(rows, pads), self.device)
        width = ids.shape[1]
        mask = None
        if any(pads):
            # Padding on the right needs no mask: no prompt token looks ahead, and its keys are cut off afterwards.
            mask = to_device_async(torch.arange(width) >= torch.tensor(pads)[:, None], self.device)
        first = min(ends) - 1
        starts = range(step.cache.num_tokens, first + 1, chunk)
        for start in starts[:-1]:
            chunk_mask = mask if mask is None else mask[:, : start + chunk]
            self.forward(step.cache, ids[:, start : start + chunk], chunk_mask, logits_to_keep=1)
        logits = self.forward(step.cache, ids[:, starts[-1] :], mask, logits_to_keep=width - first)
        if len(set(ends)) == 1:
            return logits
        indices = torch.tensor(ends)[:, None] - 1 - first + torch.arange(1 + max(map(len, step.drafts)))
        # A draft shorter than the longest may end with its row: what is gathered behind it is not looked at.
        indices = to_device_async(indices.clamp(max=width - first - 1), self.device)
        return logits.gather(1, indices[:, :, None].expand(-1, -1, logits.shape[-1]))

    def _decode(self, step: DecodeStep) -> torch.Tensor:
        """Append the latest token of each row and its draft; return the logits of all of them."""
        batch = step.batch
        rows = [[state.tokens[-1], *draft] for state, draft in zip(batch.states, step.drafts, strict=True)]
        ids = pad_token_ids(rows)
        width = ids.shape[1]
        new_mask = torch.arange(width) <= torch.tensor([len(draft) for draft in step.drafts])[:, None]
        mask = torch.cat([batch.kv_mask, new_mask.to(self.device)], dim=1)
        with decode_attention_kernel(self.model) if width == 1 and self.kernels else nullcontext():
            every = None if bool(mask.all()) else mask
            return self.forward(batch.cache, ids.to(self.device), every, logits_to_keep=width)

    def _replay(self, batch: RunningBatch) -> AsyncTokens:
        """Launch one step of the batch's CUDA graph."""
        if batch.graph is None:
            last_tokens = [state.tokens[-1] for state in batch.states]
            max_steps = max(state.remaining_tokens for state in batch.states)
            batch.graph = CudaGraphDecoder(
                self.model, batch.cache, batch.kv_mask, last_tokens, max_steps, kernels=self.kernels
            )
        return batch.graph.step()

    def _greedy_tokens(self, states: list[RequestState], logits: torch.Tensor) -> AsyncTokens:
        for row, state in enumerate(states):
            if state.remaining_min_tokens > 0:
                forbidden = list(self.eos_token_ids | state.request.stop_ids)
                logits[row, : state.remaining_min_tokens, forbidden] = -torch.inf
        return AsyncTokens(logits.argmax(dim=-1))
