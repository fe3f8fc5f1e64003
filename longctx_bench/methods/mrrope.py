"""MrRoPE: rotary extension as a conversion of radices, shared out over the pairs of YaRN's transition band."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.factor_list import FactorList, transition_band, yarn_attention_factor


class MrRoPEUni(FactorList):
    """The same radix for every pair of the band (Tian et al. 2026, arXiv 2601.22181, equations 13 to 16).

    Pair k of a band from l to h has its frequency divided by s^(t / n), t = k - l, n = h - l: faster pairs keep theirs,
    slower ones are interpolated by s. cos and sin are multiplied as in YaRN.
    """

    id: ClassVar[str] = "mrrope-uni"

    beta_fast: float = Field(default=32.0, gt=0, allow_inf_nan=False)
    """Pairs with more rotations over the training context are left unchanged."""
    beta_slow: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Pairs with fewer rotations are interpolated by s."""
    attention_factor: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Multiplies cos and sin; 0.1 ln s + 1 unless set."""

    def exponent(self, step: int, steps: int) -> float:
        """Return the exponent of s at the ``step``-th of ``steps`` pairs into the band, from 0 to 1."""
        return step / steps

    def factors(self, base: BaseModelInfo, length: int) -> list[float]:
        low, high = transition_band(base, self.beta_fast, self.beta_slow)
        scale = self.scale(base, length)

        def divisor(pair: int) -> float:
            if pair <= low:
                return 1.0
            return scale if pair >= high else scale ** self.exponent(pair - low, high - low)

        return [divisor(pair) for pair in range(base.positions.pairs)]

    def cos_sin_factor(self, base: BaseModelInfo, length: int) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return yarn_attention_factor(self.scale(base, length))


class MrRoPEPro(MrRoPEUni):
    """Radices that grow from pair to pair, so that slow ones are extended most: s^(t (t + 1) / (n (n + 1)))."""

    id: ClassVar[str] = "mrrope-pro"

    def exponent(self, step: int, steps: int) -> float:
        return step * (step + 1) / (steps * (steps + 1))
