"""Exact mode: transformers' own ``generate``, one prompt at a time, with nothing of this engine around it.

It is what every other way of decoding is tested against (``--engine-arg exact=true``).
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from longctx_bench.core.types import Request
from longctx_bench.engines.base import StoppingCriterion
from longctx_bench.engines.request_state import RequestState, RequestStatus


class _StopRequest(StoppingCriteria):
    """Appends each new token to a request state; stops when that is finished."""

    def __init__(
        self, state: RequestState, tokenizer: Any, eos_token_ids: frozenset[int], should_stop: StoppingCriterion
    ) -> None:
        self._state, self._arguments = state, (tokenizer, eos_token_ids, should_stop)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return whether the only row is finished."""
        finished = self._state.append_token(int(input_ids[0, -1]), *self._arguments)
        return torch.tensor([finished], device=input_ids.device)


@torch.inference_mode()
def generate_exact(
    model: PreTrainedModel,
    tokenizer: Any,
    eos_token_ids: frozenset[int],
    request: Request,
    should_stop: StoppingCriterion,
) -> RequestState:
    """Continue one request by ``model.generate``, greedily.

    Args:
        model: with a method applied.
        tokenizer: of the model.
        eos_token_ids: its end tokens.
        request: its drafts are ignored.
        should_stop: called after each token.

    Returns:
        The finished request.
    """
    state = RequestState(request, status=RequestStatus.RUNNING)
    ids = torch.tensor([list(request.input_ids)], device=model.device)
    ends = sorted(eos_token_ids | request.stop_ids)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=request.max_new_tokens,
        min_new_tokens=request.min_new_tokens if ends else 0,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        # What a checkpoint's generation_config.json may ask for is no part of greedy decoding.
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
    )
    model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=config,
        stopping_criteria=StoppingCriteriaList([_StopRequest(state, tokenizer, eos_token_ids, should_stop)]),
    )
    return state
