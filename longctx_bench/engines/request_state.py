"""An example while it is being decoded, and when it is finished: one rule for the engines that decode by tokens."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from longctx_bench.core.types import Request
from longctx_bench.engines.base import StoppingCriterion


@dataclass
class Row:
    """One example while it is being decoded."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    reason: str = ""
    text: str = ""

    @property
    def left(self) -> int:
        """Return how many tokens it may still have."""
        return self.request.max_new_tokens - len(self.tokens)

    def advance(self, token: int, tokenizer: Any, eos: AbstractSet[int], settled: StoppingCriterion) -> bool:
        """Add a token unless the example is finished; return True when it is."""
        if self.reason:
            return True
        self.tokens.append(token)
        self.text = tokenizer.decode(self.tokens, skip_special_tokens=True)
        if token in eos:
            self.reason = "eos"
        elif token in self.request.stop_ids:
            self.reason = "stop"
        elif settled(self.request.example_id, self.text):
            self.reason = "settled"
        elif self.left <= 0:
            self.reason = "length"
        return bool(self.reason)
