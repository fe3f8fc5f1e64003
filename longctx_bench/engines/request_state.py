"""Request state: the generated tokens, the status and the finish reason of one request.

Both engines that decode token by token, ``hf`` and ``vllm``, end a request by :meth:`RequestState.append_token`.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from longctx_bench.core.types import Request
from longctx_bench.engines.base import StoppingCriterion


class RequestStatus(Enum):
    """Where a request is in its life; each request passes through all four, in this order."""

    WAITING = "waiting"
    """Nothing was computed yet."""
    PREFILLING = "prefilling"
    """Its prompt is in a forward pass whose output was not looked at yet."""
    RUNNING = "running"
    """Its prompt is in a KV cache, and tokens are decoded."""
    FINISHED = "finished"


@dataclass(eq=False)
class RequestState:
    """One request and what was generated for it so far."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    """Generated tokens; an end or stop token is the last of them."""
    text: str = ""
    """The tokens decoded, without special tokens."""
    status: RequestStatus = RequestStatus.WAITING
    finish_reason: str = ""
    """``eos``, ``stop`` (one of the request's stop tokens), ``settled`` (the stopping criterion) or ``length``."""

    @property
    def is_finished(self) -> bool:
        """Whether no token may be added."""
        return self.status is RequestStatus.FINISHED

    @property
    def remaining_tokens(self) -> int:
        """Return how many tokens may still be generated."""
        return self.request.max_new_tokens - len(self.tokens)

    @property
    def remaining_min_tokens(self) -> int:
        """Return for how many tokens neither end nor stop tokens may be chosen; 0 or less when they may."""
        return self.request.min_new_tokens - len(self.tokens)

    def append_token(
        self, token: int, tokenizer: Any, eos_token_ids: AbstractSet[int], should_stop: StoppingCriterion
    ) -> bool:
        """Append a generated token unless the request is finished; return True when it is."""
        if self.is_finished:
            return True
        self.tokens.append(token)
        self.text = tokenizer.decode(self.tokens, skip_special_tokens=True)
        if token in eos_token_ids:
            self.finish_reason = "eos"
        elif token in self.request.stop_ids:
            self.finish_reason = "stop"
        elif should_stop(self.request.example_id, self.text):
            self.finish_reason = "settled"
        elif self.remaining_tokens <= 0:
            self.finish_reason = "length"
        if self.finish_reason:
            self.status = RequestStatus.FINISHED
        return self.is_finished
