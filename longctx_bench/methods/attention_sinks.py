"""LM-Infinite and StreamingLLM: a window of the latest tokens, and the first few."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from longctx_bench.core.errors import UserError
from longctx_bench.methods.banded import Band, BandedAttention, near_band, tokens_within
from longctx_bench.methods.base import BaseModelInfo


class LMInfinite(BandedAttention):
    """A window, and the first tokens at no larger distance than the window (Han et al. 2024, arXiv 2308.16137)."""

    id: ClassVar[str] = "lm-infinite"

    window: int | None = Field(default=None, ge=1)
    """Latest keys that a query attends to, its own included: the training context by default."""
    sinks: int = Field(default=10, ge=0)
    """First tokens that it attends to besides: 10 by default; the authors find 10 to 100 alike."""

    def bands(self, base: BaseModelInfo, length: int) -> tuple[Band, ...]:
        window, sinks = self.exact_up_to(base, length), self.sinks
        # At the distance that the window ends with or more, all count as that distance.
        first_tokens = Band(
            first=lambda i: i * 0,
            last=lambda i: (i - window).clamp(max=sinks - 1),
            query=lambda i: i * 0 + window,
            key=lambda j: j * 0,
        )
        return near_band(window), first_tokens

    def exact_up_to(self, base: BaseModelInfo, length: int) -> int:
        return tokens_within(self, base, self.window, 1.0)


class StreamingLLM(BandedAttention):
    """The first tokens and a window, at their positions inside the cache (Xiao et al. 2024, arXiv 2309.17453)."""

    id: ClassVar[str] = "streaming-llm"

    window: int | None = Field(default=None, ge=1)
    """Keys that a query attends to in all, the first and its own included: the training context by default."""
    sinks: int = Field(default=4, ge=0)
    """First tokens among them."""

    def bands(self, base: BaseModelInfo, length: int) -> tuple[Band, ...]:
        window, sinks = self.exact_up_to(base, length), self.sinks
        if sinks >= window:
            raise UserError(f"{base.name}: streaming-llm's {sinks} sinks leave nothing of its {window} tokens")
        recent = window - sinks
        # In a full cache the query's place is the last one, and the first tokens keep theirs.
        first_tokens = Band(
            first=lambda i: i * 0,
            last=lambda i: (i - recent).clamp(max=sinks - 1),
            query=lambda i: i.clamp(max=window - 1),
        )
        return near_band(recent), first_tokens

    def exact_up_to(self, base: BaseModelInfo, length: int) -> int:
        return tokens_within(self, base, self.window, 1.0)
