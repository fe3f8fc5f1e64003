"""STRING: well-trained positions in place of the farthest ones (An et al. 2024, arXiv 2410.18745)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from longctx_bench.core.errors import UserError
from longctx_bench.methods.banded import Band, BandedAttention, far_band, near_band, tokens_within
from longctx_bench.methods.base import BaseModelInfo


class STRING(BandedAttention):
    """Distances d of S and more count as d - S + W.

    Meant for the training context itself: its farthest distances are rare in training. Beyond it, distances are trained
    ones up to training context + S - W tokens.
    """

    id: ClassVar[str] = "string"
    changes_at_1x: ClassVar[bool] = True

    shift: int | None = Field(default=None, ge=1)
    """S, in tokens: a third of the training context by default, as in the paper."""
    window: int | None = Field(default=None, ge=0)
    """W, in tokens: 128 by default, as in the paper, but at most half of S.

    The authors' code also has an attention factor of 0.1 ln 2 + 1 (``attention_factor: 1.0693``), which the paper does
    not have.
    """

    def bands(self, base: BaseModelInfo, length: int) -> tuple[Band, ...]:
        shift = self.exact_up_to(base, length)
        window = min(128, shift // 2) if self.window is None else self.window
        if window > shift:
            raise UserError(f"{base.name}: string's window of {window} tokens is longer than its shift of {shift}")
        return near_band(shift), far_band(shift, query=lambda i: i - shift + window)

    def exact_up_to(self, base: BaseModelInfo, length: int) -> int:
        return tokens_within(self, base, self.shift, 1 / 3, "shift")
