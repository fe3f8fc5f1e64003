"""Dual chunk attention: positions inside chunks, three maps for queries (An et al. 2024, arXiv 2402.17463)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from longctx_bench.core.errors import UserError
from longctx_bench.methods.banded import Band, BandedAttention, tokens_within
from longctx_bench.methods.base import BaseModelInfo

if TYPE_CHECKING:
    import torch


class DualChunkAttention(BandedAttention):
    """Keys are at j mod c, and queries at i mod c for keys of their own chunk; c is ``chunk_size - local_window``.

    For the chunk before, queries are at min(i mod c + c, chunk_size), so that the latest keys keep their distance; for
    all older chunks at chunk_size.
    """

    id: ClassVar[str] = "dca"
    changes_at_1x: ClassVar[bool] = True

    chunk_size: int | None = Field(default=None, ge=2)
    """Largest distance in tokens: three quarters of the training context by default, as in the authors' code."""
    local_window: int | None = Field(default=None, ge=1)
    """An eighth of the training context by default, as in the authors' code. That also scales cos and sin by
    0.05 ln(length / training context) + 1 (``attention_factor``), which the paper does not have."""

    def bands(self, base: BaseModelInfo, length: int) -> tuple[Band, ...]:
        chunk_size, stride = self._sizes(base)

        def start(i: torch.Tensor, back: int) -> torch.Tensor:
            return (i // stride - back) * stride

        def within(position: torch.Tensor) -> torch.Tensor:
            return position % stride

        same_chunk = Band(first=lambda i: start(i, 0), last=lambda i: i, query=within, key=within)
        previous_chunk = Band(
            first=lambda i: start(i, 1),
            last=lambda i: start(i, 0) - 1,
            query=lambda i: (within(i) + stride).clamp(max=chunk_size),
            key=within,
        )
        older_chunks = Band(
            first=lambda i: i * 0,
            last=lambda i: start(i, 1) - 1,
            query=lambda i: i * 0 + min(2 * stride - 1, chunk_size),
            key=within,
        )
        return same_chunk, previous_chunk, older_chunks

    def exact_up_to(self, base: BaseModelInfo, length: int) -> int:
        size, chunk = self._sizes(base)
        return min(size + 1, 2 * chunk)

    def _sizes(self, base: BaseModelInfo) -> tuple[int, int]:
        size = tokens_within(self, base, self.chunk_size, 3 / 4, "chunk_size")
        local = tokens_within(self, base, self.local_window, 1 / 8, "local_window")
        if local >= size:
            raise UserError(
                f"{base.name}: dca's local_window of {local} tokens leaves nothing of its chunk_size of {size}"
            )
        return size, size - local
