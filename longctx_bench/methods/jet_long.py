"""Jet-Long: two focal lengths, exact near and grouped far (Tang et al. 2026, arXiv 2607.07740)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

from pydantic import Field

from longctx_bench.methods.banded import Band, BandedAttention, far_band, near_band, tokens_within
from longctx_bench.methods.base import BaseModelInfo


class JetLong(BandedAttention):
    """The base itself up to its training context; beyond, keys outside a small window at positions divided by G.

    G = ceil(L / training context), for each prompt with its new tokens. In contrast to Self-Extend, far positions are
    not shifted to continue those of the window.
    """

    id: ClassVar[str] = "jet-long"
    per_prompt: ClassVar[bool] = True

    window: int | None = Field(default=None, ge=1)
    """w0: keys at this distance in tokens, and nearer ones, keep their positions. A sixteenth of the training context
    by default (the authors' 2,048 at 32,768)."""

    def bands(self, base: BaseModelInfo, length: int) -> tuple[Band, ...]:
        window, group = tokens_within(self, base, self.window, 1 / 16) + 1, self.group_at(base, length)
        return near_band(window), far_band(window, query=lambda i: i // group, key=lambda j: j // group)

    def needs_equal_lengths(self, base: BaseModelInfo, lengths: Iterable[int]) -> bool:
        # Only G depends on the length, and the window where it was tuned by length.
        methods = [(self.at(base, length), length) for length in set(lengths)]
        return len({(m.group_at(base, n), m.window, m._is_base(base, n)) for m, n in methods}) > 1

    def exact_up_to(self, base: BaseModelInfo, length: int) -> int:
        if self.group_at(base, length) == 1:
            return length
        return tokens_within(self, base, self.window, 1 / 16) + 1

    def group_at(self, base: BaseModelInfo, length: int) -> int:
        """Return G for a length in tokens."""
        return math.ceil(self.scale(base, length))
