"""The scheduler: continuous batching with greedy speculative decoding.

Each forward pass verifies draft tokens and keeps the accepted prefix of them, so that a right draft saves passes and a
wrong one changes nothing. Requests that are finished leave the running batch, and waiting ones are prefilled and join
it (continuous batching, Yu et al. 2022). ``docs/engine.md`` has the whole picture.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from longctx_bench.engines.base import StoppingCriterion
from longctx_bench.engines.hf.kv_cache import CacheSlice, KVCache
from longctx_bench.engines.hf.model_runner import DecodeStep, ModelRunner, PrefillStep, Step
from longctx_bench.engines.hf.padding import AsyncTokens
from longctx_bench.engines.hf.prefill_scheduler import (
    MAX_LOGITS_PER_PASS,
    clip_draft,
    num_padded_tokens,
    schedule_prefills,
    split_by_token_budget,
)
from longctx_bench.engines.hf.prompt_lookup import PromptLookupDrafter
from longctx_bench.engines.hf.running_batch import RunningBatch
from longctx_bench.engines.prefix_groups import common_prefix_length, is_sharing_worthwhile
from longctx_bench.engines.request_state import RequestState, RequestStatus

_ADMIT_BELOW = 0.5
"""Share of the batch's token budget below which waiting requests are admitted: joining copies the keys of all."""


@dataclass
class SchedulerConfig:
    """How requests are scheduled, and which optimisations are on; none of them changes a token."""

    max_prefill_tokens: int = 1
    """Prompt tokens up to which prompts share a forward pass: more of them keep a device no busier."""
    max_finished_share: float = 0.0
    """Share of finished rows that the running batch may have: on a GPU a row costs less than copying the cache."""
    async_scheduling: bool = False
    """Launch the next pass before the output of the last one is processed, so that a GPU does not wait."""
    reference_drafts: bool = True
    """Verify the drafts that requests come with, behind their prompts."""
    prompt_lookup: bool = True
    """Draft by prompt lookup while decoding."""
    prefix_sharing: bool = True
    """Prefill a common prefix of prompts once."""
    cuda_graph: bool | None = None
    """Decode by a captured step; where the model supports it when None."""


class _CachedPrompt(NamedTuple):
    """The prompt that was prefilled last, by itself, and its cache; the next prompt may fork it."""

    ids: Sequence[int] = ()
    cache: KVCache | None = None


class Scheduler:
    """Decides what the model runs next, and what its output means for each request."""

    def __init__(
        self,
        states: list[RequestState],
        runner: ModelRunner,
        tokenizer: Any,
        config: SchedulerConfig,
        should_stop: StoppingCriterion,
        prefill_token_budget: int,
        max_batch_tokens: int | None = None,
    ) -> None:
        """Take requests.

        Args:
            states: of the requests, all waiting.
            runner: whose model decodes them.
            tokenizer: of the model.
            config: how they are scheduled.
            should_stop: called after each token of each request.
            prefill_token_budget: prompt tokens, of all rows, that a forward pass has memory for.
            max_batch_tokens: padded tokens (prompts and completions) of the running batch; no limit when None.
        """
        self._runner, self._tokenizer, self._config, self._should_stop = runner, tokenizer, config, should_stop
        self._prefill_token_budget = prefill_token_budget
        self._max_batch_tokens = num_padded_tokens(states) if max_batch_tokens is None else max_batch_tokens
        self._supports_concat = runner.new_cache().supports_concat
        # Joining a running batch, forking a cache and cutting drafts off it require keys that do not change.
        self._is_continuous = self._supports_concat and runner.has_stable_keys
        graph = runner.supports_cuda_graph if config.cuda_graph is None else config.cuda_graph
        self._use_graph = self._is_continuous and graph
        # Rejected drafts leave holes in the cache: a captured step has no room for them, and attention other than sdpa
        # may count distances in slots.
        self._use_lookup = self._is_continuous and not graph and config.prompt_lookup and runner.uses_sdpa
        self._drafters: dict[RequestState, PromptLookupDrafter] = {}
        self._pending = deque(
            [states] if self._is_continuous else split_by_token_budget(states, self._max_batch_tokens)
        )
        """Groups of requests that may share the running batch; a group begins when the one before it is finished."""
        self._waiting: deque[list[RequestState]] = deque()
        """Waiting requests, grouped by the forward pass that prefills them."""
        self._prefilled: list[tuple[RequestState, CacheSlice]] = []
        """Prefilled requests, which are admitted to the running batch all at once."""
        self._running: RunningBatch | None = None
        self._cached_prompt = _CachedPrompt()
        self._is_admitting: bool | None = None
        """Whether waiting requests are admitted before the next decode step; None: not decided yet."""
        self._in_flight: list[Step] = []

    def has_unfinished(self) -> bool:
        """Whether any request is not finished, or any step not updated."""
        return bool(self._pending or self._waiting or self._prefilled or self._running or self._in_flight)

    def schedule(self) -> Step | None:
        """Return the next step to execute; None where it depends on the output of one in flight (call update)."""
        if self._running is not None and self._running.graph is not None:
            # The captured step takes its tokens from the one before it.
            return self._launch(DecodeStep(self._running, [], use_graph=True))
        if any(isinstance(step, DecodeStep) for step in self._in_flight):
            return None
        if not (self._waiting or self._prefilled or self._running or self._in_flight) and self._pending:
            self._waiting.extend(self._group(self._pending.popleft()))
        if self._is_admitting is None:
            used = num_padded_tokens(self._running.unfinished() if self._running else [])
            self._is_admitting = used <= _ADMIT_BELOW * self._max_batch_tokens
        if self._is_admitting and self._waiting and self._fits(self._waiting[0]):
            if self._config.async_scheduling or not self._in_flight:
                return self._launch(self._prefill_step(self._waiting.popleft()))
            return None
        if self._in_flight:
            return None
        self._admit()
        self._is_admitting = None
        return self._launch(self._decode_step(self._running)) if self._running is not None else None

    def update(self, step: Step, tokens: AsyncTokens) -> None:
        """Take the output of a step, in the order in which steps were scheduled: tokens, drafts, finished requests."""
        self._in_flight.remove(step)
        if isinstance(step, PrefillStep):
            self._update_prefill(step, tokens.tolist())
        elif not step.use_graph:
            self._update_decode(step, tokens.tolist())
        # Of a closed graph, this is the one step that it ran too many.
        elif step.batch.graph is not None:
            self._update_graph(step.batch, tokens.tolist())

    # -- scheduling -----------------------------------------------------------------------------------------------

    def _group(self, states: list[RequestState]) -> list[list[RequestState]]:
        if not self._supports_concat:
            # Sliding windows cannot be joined: all prompts are prefilled in one pass.
            return [states]
        return schedule_prefills(
            states,
            min(self._config.max_prefill_tokens, self._max_batch_tokens),
            self._prefill_token_budget,
            self._runner.vocab_size,
            ragged=self._is_continuous,
            share_prefixes=self._is_continuous and self._config.prefix_sharing,
        )

    def _fits(self, group: list[RequestState]) -> bool:
        """Whether requests fit in the running batch; those in flight may all have to be decoded."""
        admitted = [] if self._running is None else self._running.unfinished()
        admitted = [*admitted, *(state for state, _ in self._prefilled)]
        for step in self._in_flight:
            admitted += step.states if isinstance(step, PrefillStep) else []
        return not admitted or num_padded_tokens([*admitted, *group]) <= self._max_batch_tokens

    def _prefill_step(self, group: list[RequestState]) -> PrefillStep:
        for state in group:
            state.status = RequestStatus.PREFILLING
        drafts: list[list[int]] = [[] for _ in group]
        if self._is_continuous and self._config.reference_drafts:
            drafts = [clip_draft(state, len(group), self._runner.vocab_size) for state in group]
        ids = group[0].request.input_ids
        self._keep_cached_prompt(group)
        if self._cached_prompt.cache is not None:
            # The last token is computed in any case: its logits are in no cache.
            shared = min(common_prefix_length(self._cached_prompt.ids, ids), len(ids) - 1)
            cache = self._cached_prompt.cache.fork(shared, self._runner.cache_capacity(group))
        else:
            cache = self._runner.new_cache(group)
        shareable = self._is_continuous and self._config.prefix_sharing and len(group) == 1
        self._cached_prompt = _CachedPrompt(ids, cache) if shareable else _CachedPrompt()
        pads = []
        if not self._supports_concat:
            longest = max(len(state.request.input_ids) for state in group)
            pads = [longest - len(state.request.input_ids) for state in group]
        return PrefillStep(group, drafts, cache, self._prefill_token_budget, pads)

    def _decode_step(self, batch: RunningBatch) -> DecodeStep:
        if self._use_graph and all(state.remaining_min_tokens <= 0 for state in batch.states):
            return DecodeStep(batch, [], use_graph=True)
        return DecodeStep(batch, self._propose_drafts(batch))

    def _propose_drafts(self, batch: RunningBatch) -> list[list[int]]:
        drafts: list[list[int]] = [[] for _ in batch.states]
        if not self._use_lookup:
            return drafts
        logits_per_row = MAX_LOGITS_PER_PASS // (len(batch.states) * self._runner.vocab_size)
        max_tokens = min(batch.make_room_for_drafts(), logits_per_row - 1)
        for row, state in enumerate(batch.states):
            if not state.is_finished:
                drafts[row] = self._drafter(state).propose(min(max_tokens, state.remaining_tokens - 1))
        return drafts

    def _drafter(self, state: RequestState) -> PromptLookupDrafter:
        if state not in self._drafters:
            self._drafters[state] = PromptLookupDrafter([*state.request.input_ids, *state.tokens])
        return self._drafters[state]

    def _keep_cached_prompt(self, group: list[RequestState]) -> None:
        """Keep the cache of the prompt that was prefilled last only if the next one forks it: it takes memory."""
        if self._cached_prompt.cache is None:
            return
        ids = group[0].request.input_ids if len(group) == 1 else ()
        shared = min(common_prefix_length(self._cached_prompt.ids, ids), len(ids) - 1)
        if not ids or not is_sharing_worthwhile(shared, len(ids)):
            self._cached_prompt = _CachedPrompt()

    def _admit(self) -> None:
        """Join the requests that were prefilled with the running batch."""
        if not self._prefilled:
            return
        self._keep_cached_prompt(self._waiting[0] if self._waiting else [])
        joined = [*(self._running.take_slices() if self._running else []), *self._prefilled]
        self._prefilled = []
        self._running = self._join(joined, self._cached_prompt.cache)

    def _join(self, rows: list[tuple[RequestState, CacheSlice]], keep: KVCache | None) -> RunningBatch:
        states, slices = [state for state, _ in rows], [part for _, part in rows]
        longest = max(part.num_tokens for part in slices)
        cache = KVCache.concat(slices, self._runner.cache_capacity(states), keep)
        return RunningBatch.from_cache(
            states, cache, [longest - part.num_tokens for part in slices], self._runner.device
        )

    def _launch(self, step: Step) -> Step:
        self._in_flight.append(step)
        return step

    # -- updating -------------------------------------------------------------------------------------------------

    def _update_prefill(self, step: PrefillStep, tokens: list[list[int]]) -> None:
        accepted = self._accept(step.states, tokens, step.drafts)
        for state in step.states:
            if not state.is_finished:
                state.status = RequestStatus.RUNNING
        if not self._supports_concat:
            self._running = RunningBatch.from_cache(step.states, step.cache, step.left_pads, self._runner.device)
            self._drop_finished()
            return
        ends = [
            len(state.request.input_ids) + num_accepted
            for state, num_accepted in zip(step.states, accepted, strict=True)
        ]
        rows = [(state, CacheSlice(step.cache, row, 0, ends[row])) for row, state in enumerate(step.states)]
        unfinished = [row_slice for row_slice in rows if not row_slice[0].is_finished]
        if 0 < len(unfinished) < len(rows):
            # The cache of the finished ones is freed before others are prefilled.
            unfinished = self._join(unfinished, None).take_slices()
        self._prefilled += unfinished

    def _update_decode(self, step: DecodeStep, tokens: list[list[int]]) -> None:
        batch = step.batch
        num_tokens_before = [len(state.tokens) for state in batch.states]
        accepted = self._accept(batch.states, tokens, step.drafts)
        batch.extend_mask(1 + max(map(len, step.drafts)), accepted)
        if self._use_lookup:
            for state, draft, num_accepted, start in zip(
                batch.states, step.drafts, accepted, num_tokens_before, strict=True
            ):
                drafter = self._drafter(state)
                drafter.append(state.tokens[start:])
                drafter.update_acceptance(len(draft), num_accepted)
        self._drop_finished()

    def _update_graph(self, batch: RunningBatch, tokens: list[list[int]]) -> None:
        self._accept(batch.states, tokens, [[]] * len(batch.states))
        batch.num_graph_steps += 1
        if batch.has_idle_rows(self._config.max_finished_share):
            batch.close_graph()
            self._drop_finished()

    def _accept(self, states: list[RequestState], tokens: list[list[int]], drafts: list[list[int]]) -> list[int]:
        """Append to each request its greedy tokens for as long as the draft agrees with them, and the one after.

        Returns:
            The number of accepted tokens of each draft, which stay in the cache.
        """
        accepted = []
        for state, greedy, draft in zip(states, tokens, drafts, strict=True):
            right = 0
            while not self._append(state, greedy[right]) and draft[right : right + 1] == [greedy[right]]:
                right += 1
            accepted.append(right)
        return accepted

    def _append(self, state: RequestState, token: int) -> bool:
        return state.append_token(token, self._tokenizer, self._runner.eos_token_ids, self._should_stop)

    def _drop_finished(self) -> None:
        batch = self._running
        if batch is not None and batch.has_idle_rows(self._config.max_finished_share) and not batch.drop_finished():
            self._running = None
