"""RNoPE-SWA: sliding-window RoPE layers, every fourth layer full attention without positions (arXiv 2501.18795)."""

from __future__ import annotations

from typing import Any, ClassVar

from longctx_bench.methods.base import BaseModelInfo, Capability, Method


class RNoPESWA(Method):
    """A checkpoint trained with RNoPE-SWA; stock transformers reads its layer types and windows from config.json."""

    id: ClassVar[str] = "rnope-swa"
    checkpoint: ClassVar[str | None] = "rnope-swa"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({"sliding_window"})

    def uses_factor(self) -> bool:
        return False

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        return {"max_position_embeddings": max(length, base.training_context)}
