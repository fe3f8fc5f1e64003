"""The engine core: the loop of schedule, execute and update that generates for a batch of requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from longctx_bench.core.types import Request
from longctx_bench.engines.base import StoppingCriterion
from longctx_bench.engines.hf.model_runner import ModelRunner, Step
from longctx_bench.engines.hf.padding import AsyncTokens
from longctx_bench.engines.hf.scheduler import Scheduler, SchedulerConfig
from longctx_bench.engines.request_state import RequestState

_CPU_PREFILL_TOKENS, _CUDA_PREFILL_TOKENS = 1, 65_536
_CUDA_MAX_FINISHED_SHARE = 0.5


@dataclass
class EngineCore:
    """Greedy generation with one model and tokenizer."""

    runner: ModelRunner
    tokenizer: Any
    config: SchedulerConfig

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        tokenizer: Any,
        eos_token_ids: frozenset[int],
        kernels: bool = True,
        switches: SchedulerConfig | None = None,
    ) -> Self:
        """Return a core scheduled for the model's device; ``switches`` are the optimisations, all by default."""
        config = SchedulerConfig() if switches is None else switches
        if model.device.type == "cuda":
            config = replace(
                config,
                max_prefill_tokens=_CUDA_PREFILL_TOKENS,
                max_finished_share=_CUDA_MAX_FINISHED_SHARE,
                async_scheduling=True,
            )
        else:
            config = replace(config, max_prefill_tokens=_CPU_PREFILL_TOKENS)
        return cls(ModelRunner(model, eos_token_ids, kernels), tokenizer, config)

    @torch.inference_mode()
    def generate(
        self,
        batch: Sequence[Request],
        should_stop: StoppingCriterion,
        prefill_token_budget: int,
        max_batch_tokens: int | None = None,
    ) -> list[RequestState]:
        """Continue requests until an end token, the token budget or the stopping criterion.

        Args:
            batch: requests with at least one prompt token each.
            should_stop: called after each token of each request.
            prefill_token_budget: prompt tokens, of all rows together, that a forward pass has memory for.
            max_batch_tokens: prompt and new tokens of the requests that are decoded at a time; of all when None.

        Returns:
            The finished requests, in order.
        """
        states = [RequestState(request) for request in batch]
        scheduler = Scheduler(
            states, self.runner, self.tokenizer, self.config, should_stop, prefill_token_budget, max_batch_tokens
        )
        in_flight: deque[tuple[Step, AsyncTokens]] = deque()
        while scheduler.has_unfinished():
            step = scheduler.schedule()
            if step is not None:
                in_flight.append((step, self.runner.execute(step)))
            # With async scheduling one step runs while the output of the one before it is looked at.
            while in_flight and (step is None or len(in_flight) > self.config.async_scheduling):
                scheduler.update(*in_flight.popleft())
                if step is None:
                    break
        return states
