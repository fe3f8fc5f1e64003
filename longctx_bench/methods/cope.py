"""CoPE: the slowest rotary pairs clipped, softly or altogether."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.factor_list import DROPPED, FactorList


class CoPE(FactorList):
    """The slowest pairs fade out by a half cosine (Li et al. 2026, arXiv 2602.05258), whatever the length.

    Meant for continued training, and usable without. The frequencies of the ``clipped`` slowest pairs are multiplied
    by (1 + cos x) / 2, x from 0 at the fastest of them to pi at the slowest, which no longer rotates.
    """

    id: ClassVar[str] = "cope"
    changes_at_1x: ClassVar[bool] = True

    clipped: int = Field(default=20, ge=1)
    """Pairs that are clipped: 20 in the authors' code, for heads of 64 pairs; all, where a head has fewer."""
    hard: bool = False
    """Take the rotation of the clipped pairs away in place of fading it out (the paper's ablation)."""

    def uses_factor(self) -> bool:
        return False

    def factors(self, base: BaseModelInfo, length: int) -> list[float]:
        pairs = base.positions.pairs
        clipped = min(self.clipped, pairs)
        unchanged = [1.0] * (pairs - clipped)
        if self.hard:
            return unchanged + [DROPPED] * clipped
        angles = [math.pi * index / max(1, clipped - 1) for index in range(clipped)]
        return unchanged + [_divisor((1 + math.cos(angle)) / 2) for angle in angles]


def _divisor(share: float) -> float:
    return 1 / share if share else DROPPED
