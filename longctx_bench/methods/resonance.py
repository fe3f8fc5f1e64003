"""Resonance RoPE: wavelengths of whole tokens, so that a pair's angles repeat exactly beyond the training context."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.factor_list import FactorList, wavelengths, yarn_attention_factor, yarn_factors


class Resonance(FactorList):
    """Each pair's wavelength rounded to whole tokens (Wang et al. 2024, arXiv 2403.00071).

    As in the authors' code all pairs are rounded; it hardly moves those that are slow. Frequencies are fp32, so angles
    repeat up to its rounding (the authors' tables repeat to the last bit).
    """

    id: ClassVar[str] = "resonance"
    changes_at_1x: ClassVar[bool] = True

    scaling: Literal["none", "yarn"] = "none"
    """Whose wavelengths are rounded: the base's, or YaRN's (with YaRN's factor on cos and sin)."""
    beta_fast: float = Field(default=32.0, gt=0, allow_inf_nan=False)
    """With YaRN: pairs with more rotations over the training context are not interpolated."""
    beta_slow: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """With YaRN: pairs with fewer rotations are interpolated by s."""
    attention_factor: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Multiplies cos and sin; unless set, 1, and with YaRN 0.1 ln s + 1."""

    def uses_factor(self) -> bool:
        return self.scaling == "yarn"

    def factors(self, base: BaseModelInfo, length: int) -> list[float]:
        plain = wavelengths(base)
        divisors = [1.0] * len(plain)
        if self.scaling == "yarn":
            divisors = yarn_factors(base, self.scale(base, length), self.beta_fast, self.beta_slow)
        return [round(tokens * divisor) / tokens for tokens, divisor in zip(plain, divisors, strict=True)]

    def cos_sin_factor(self, base: BaseModelInfo, length: int) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return yarn_attention_factor(self.scale(base, length)) if self.scaling == "yarn" else 1.0
