"""Methods that are a list: one divisor for the frequency of each rotary pair."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from longctx_bench.core.errors import UserError
from longctx_bench.methods.base import BaseModelInfo, Method

DROPPED = 1e30
"""Divisor of a pair that is not rotated: what is left of its frequency is less than fp32 resolves at any position."""


class FactorList(Method):
    """A list of divisors of the base's rotary frequencies; a subclass says which.

    Engines get transformers' and vLLM's type ``longrope``. Both switch from ``short_factor`` to ``long_factor`` at the
    training context, so both are the same list here; and both derive a factor on cos and sin from lengths unless it is
    given, as it is here.
    """

    @abstractmethod
    def factors(self, base: BaseModelInfo, length: int) -> list[float]:
        """Return the divisors of the frequencies, one for each rotated pair of dimensions, the fastest first.

        Args:
            base: the base model's properties.
            length: tokens, of the cell.
        """

    def cos_sin_factor(self, base: BaseModelInfo, length: int) -> float:
        """Return what cos and sin are multiplied with; 1 by default."""
        return 1.0

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        if not math.isfinite(base.rope_theta) or base.rope_theta <= 1:
            raise UserError(f"{base.name}: its rope_theta is {base.rope_theta:g}, and frequencies need one above 1")
        divisors = self.factors(base, length)
        return {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": base.rope_theta,
                "factor": self.scale(base, length),
                "original_max_position_embeddings": base.training_context,
                "attention_factor": self.cos_sin_factor(base, length),
                "short_factor": divisors,
                "long_factor": list(divisors),
            },
            "max_position_embeddings": length,
        }


def with_mscale(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``rope_parameters`` of type longrope with their factor on cos and sin where vLLM looks for it, too.

    Its longrope knows no ``attention_factor``, and derives one from lengths without ``short_mscale``, ``long_mscale``.
    """
    factor = rope["attention_factor"]
    return {**rope, "short_mscale": factor, "long_mscale": factor}


def wavelengths(base: BaseModelInfo) -> list[float]:
    """Return the tokens in which each rotated pair of a base turns once, the fastest first."""
    pairs = base.positions.pairs
    return [2 * math.pi * base.rope_theta ** (pair / pairs) for pair in range(pairs)]


def transition_band(base: BaseModelInfo, beta_fast: float, beta_slow: float) -> tuple[int, int]:
    """Return YaRN's transition band: the last pair that is left alone and the first that is interpolated by s.

    Args:
        base: the base model's properties.
        beta_fast: pairs that turn more often over the training context are left alone.
        beta_slow: pairs that turn less often are interpolated.

    Returns:
        Indices of pairs from 0 on, as in the code of arXiv 2309.00071; the second may lie beyond the last pair.

    Raises:
        UserError: ``beta_fast`` is not above ``beta_slow``.
    """
    if beta_fast <= beta_slow:
        raise UserError(f"beta_fast ({beta_fast:g}) must be above beta_slow ({beta_slow:g})")
    dims = base.rotary_dim

    def pair_that_turns(times: float) -> float:
        return dims * math.log(base.training_context / (times * 2 * math.pi)) / (2 * math.log(base.rope_theta))

    return max(math.floor(pair_that_turns(beta_fast)), 0), min(math.ceil(pair_that_turns(beta_slow)), dims - 1)


def yarn_factors(base: BaseModelInfo, scale: float, beta_fast: float, beta_slow: float) -> list[float]:
    """Return YaRN's frequencies as divisors of the base's (arXiv 2309.00071)."""
    low, high = transition_band(base, beta_fast, beta_slow)
    width = high - low or 0.001
    shares = [min(1.0, max(0.0, (pair - low) / width)) for pair in range(base.positions.pairs)]
    return [1 / (share / scale + 1 - share) for share in shares]


def yarn_attention_factor(scale: float) -> float:
    """Return YaRN's factor on cos and sin, 0.1 ln s + 1."""
    return 0.1 * math.log(scale) + 1
