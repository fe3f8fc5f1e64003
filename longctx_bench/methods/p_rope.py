"""p-RoPE: rotary positions for the fastest pairs alone."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.factor_list import DROPPED, FactorList


class PartialRoPE(FactorList):
    """The share ``p`` of pairs that rotate fastest; the rest carry no position (Barbero et al. 2024, arXiv 2410.06205).

    Made for pretraining, and usable without. p = 1 is the base itself, p = 0 a model without positions; the length has
    no influence.
    """

    id: ClassVar[str] = "p-rope"
    changes_at_1x: ClassVar[bool] = True

    p: float = Field(default=0.75, ge=0, le=1)
    """Share of the rotated pairs that keep their rotation, rounded down to whole pairs."""

    def uses_factor(self) -> bool:
        return False

    def factors(self, base: BaseModelInfo, length: int) -> list[float]:
        pairs = base.positions.pairs
        kept = int(self.p * pairs)
        return [1.0] * kept + [DROPPED] * (pairs - kept)
