"""Giraffe's two bases of rotary frequencies: scaled by a power, and truncated."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from longctx_bench.core.errors import UserError
from longctx_bench.methods.base import BaseModelInfo
from longctx_bench.methods.factor_list import DROPPED, FactorList, wavelengths


class Giraffe(FactorList):
    """Power scaling, truncation or both (Pal et al. 2023, arXiv 2308.10882), whatever the length.

    Made for fine-tuning, and usable without. Power scaling multiplies the frequency of pair k of n by
    (1 - k / n)^power. Truncation keeps wavelengths up to the training context, sets those of up to ``dropped_from``
    training contexts to ``replaced_by`` of them, and takes the rotation of slower pairs away; the two numbers are those
    of the authors' code, in which the training context is 2,048 tokens.
    """

    id: ClassVar[str] = "giraffe"
    changes_at_1x: ClassVar[bool] = True

    power: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    """Exponent of power scaling; 0 is none."""
    truncate: bool = False
    """Truncate the basis, after any power scaling."""
    dropped_from: float = Field(default=8.0, ge=1, allow_inf_nan=False)
    """Training contexts in a wavelength from which on a pair is dropped."""
    replaced_by: float = Field(default=16.0, gt=0, allow_inf_nan=False)
    """Training contexts in the wavelength of all pairs between those that are kept and those that are dropped."""

    def uses_factor(self) -> bool:
        return False

    def factors(self, base: BaseModelInfo, length: int) -> list[float]:
        if self.power == 0 and not self.truncate:
            raise UserError("giraffe: power is 0 and truncate is false, which is the base as it is (rope)")
        plain = wavelengths(base)
        scaled = [(1 - pair / len(plain)) ** -self.power for pair in range(len(plain))]
        if not self.truncate:
            return scaled
        return [
            self._truncated(tokens, tokens * divisor / base.training_context, base.training_context, divisor)
            for tokens, divisor in zip(plain, scaled, strict=True)
        ]

    def _truncated(self, tokens: float, contexts: float, training_context: int, divisor: float) -> float:
        if contexts <= 1:
            return divisor
        return self.replaced_by * training_context / tokens if contexts <= self.dropped_from else DROPPED
