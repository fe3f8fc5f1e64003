"""ReRoPE and Leaky ReRoPE: distances beyond a window are constant, or grow slowly (Su 2023, kexue.fm/archives/9708)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from longctx_bench.methods.banded import Band, BandedAttention, far_band, near_band, tokens_within
from longctx_bench.methods.base import BaseModelInfo


class ReRoPE(BandedAttention):
    """Distances of the window and more count as the window itself."""

    id: ClassVar[str] = "rerope"
    changes_at_1x: ClassVar[bool] = True

    window: int | None = Field(default=None, ge=1)
    """w, in tokens: an eighth of the training context by default, as the author's code has it (512 at 4,096)."""
    log_n: bool = True
    """As in the author's code: queries beyond the training context are scaled by ln(i + 1) / ln(training context)."""

    def bands(self, base: BaseModelInfo, length: int) -> tuple[Band, ...]:
        window = tokens_within(self, base, self.window, 1 / 8)
        return near_band(window), far_band(window, query=lambda i: i * 0 + window, key=lambda j: j * 0)

    def exact_up_to(self, base: BaseModelInfo, length: int) -> int:
        return tokens_within(self, base, self.window, 1 / 8) + 1


class LeakyReRoPE(ReRoPE):
    """Distances d beyond the window count as w + (d - w) / k."""

    id: ClassVar[str] = "leaky-rerope"

    slope: float = Field(default=16.0, ge=1)
    """k; the author's code has 16."""

    def bands(self, base: BaseModelInfo, length: int) -> tuple[Band, ...]:
        window = tokens_within(self, base, self.window, 1 / 8)
        slope = self.slope
        far = far_band(window, query=lambda i: (i + window * (slope - 1)) / slope, key=lambda j: j / slope)
        return near_band(window), far
