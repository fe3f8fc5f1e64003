"""Self-Extend: exact positions near, grouped positions far (Jin et al. 2024, arXiv 2401.01325)."""

from __future__ import annotations

import math
from typing import ClassVar

from pydantic import Field

from longctx_bench.core.errors import UserError
from longctx_bench.methods.banded import Band, BandedAttention, far_band, near_band, tokens_within
from longctx_bench.methods.base import BaseModelInfo

_TRAINED_SHARE = 2 / 3
"""Share of the training context whose distances the authors call well trained (they name 1/2 to 2/3)."""


class SelfExtend(BandedAttention):
    """Keys nearer than the window at their true positions, all others at positions divided by the group size.

    Far distances are floor(i / G) + w - floor(w / G) - floor(j / G), which continue those of the window.
    """

    id: ClassVar[str] = "self-extend"
    changes_at_1x: ClassVar[bool] = True

    window: int | None = Field(default=None, ge=1)
    """w, in tokens: a quarter of the training context by default (1,024 at Llama 2's 4,096)."""
    group: int | None = Field(default=None, ge=1)
    """G: by default the smallest one that meets the authors' rule for a target length of N tokens,
    w + (N - w) / G <= 2/3 of the training context."""
    floor_shift: bool = True
    """False: w - w / G is not rounded, as in the authors' Llama.py; it matters where G does not divide w."""

    def bands(self, base: BaseModelInfo, length: int) -> tuple[Band, ...]:
        window = tokens_within(self, base, self.window, 1 / 4)
        group = self.group_at(base, length)
        shift = window - (window // group if self.floor_shift else window / group)
        return (
            near_band(window),
            far_band(window, query=lambda i: i // group + shift, key=lambda j: j // group),
        )

    def exact_up_to(self, base: BaseModelInfo, length: int) -> int:
        return tokens_within(self, base, self.window, 1 / 4)

    def group_at(self, base: BaseModelInfo, length: int) -> int:
        """Return G for a length in tokens.

        Raises:
            UserError: no G meets the rule, as the window takes up all distances that it allows.
        """
        if self.group is not None:
            return self.group
        window = tokens_within(self, base, self.window, 1 / 4)
        target = round(self.scale(base, length) * base.training_context)
        free_distances = _TRAINED_SHARE * base.training_context - window
        if free_distances <= 0:
            raise UserError(
                f"{base.name}: self-extend's window of {window} tokens leaves no room for groups within 2/3 of the "
                f"training context of {base.training_context}; set a smaller window, or 'group'"
            )
        return max(1, math.ceil((target - window) / free_distances))
