"""A method: attention logits multiplied by ln L / ln C beyond the training context C (Su's log-n attention)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import log
from typing import TYPE_CHECKING, Any

from longctx_bench.methods.base import BaseModelInfo, Method

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LogN(Method):
    """RoPE with log-n attention: a sharper softmax for longer prompts."""

    strength: float = 1.0
    """1 is Su's rule, 0 the base itself."""

    def model_overrides(self, base: BaseModelInfo, length: int) -> dict[str, Any]:
        """Let the model read as many tokens; nothing else of its config changes."""
        return {"max_position_embeddings": max(length, base.training_context)}

    @contextmanager
    def patch(self, model: PreTrainedModel, base: BaseModelInfo, length: int) -> Iterator[None]:
        """Scale the attention of all layers, and take that back."""
        ratio = log(max(length, base.training_context)) / log(base.training_context)
        layers = [module for module in model.modules() if hasattr(module, "scaling") and hasattr(module, "q_proj")]
        before = [layer.scaling for layer in layers]
        try:
            for layer, scaling in zip(layers, before, strict=True):
                layer.scaling = scaling * ratio**self.strength
            yield
        finally:
            for layer, scaling in zip(layers, before, strict=True):
                layer.scaling = scaling
