"""DroPE: positions dropped, weights recalibrated, softmax sharpened with length (arXiv 2512.12167)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from longctx_bench.methods.base import Base, Method
from longctx_bench.methods.rope import NoPE
from longctx_bench.specs import Spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Temperature(Spec):
    """The softmax scale beta as a function of s: a table where it was fitted, else the law 1 + c ln s."""

    c: float = 0.0
    table: dict[float, float] = Field(default_factory=dict)
    """beta by extension factor; between two entries it is interpolated in ln s, outside the law continues."""
    source: str = "none"
    """Which calibration it comes from: ``paper``, ``perplexity``, ``retrieval``, ``user`` or ``none``."""

    def beta(self, scale: float) -> float:
        """Return the factor on the attention logits at extension factor ``scale``; 1 up to the training context."""
        if scale <= 1.0:
            return 1.0
        known = sorted({1.0: 1.0, **self.table}.items())
        for (low, beta_low), (high, beta_high) in itertools.pairwise(known):
            if low <= scale <= high:
                weight = math.log(scale / low) / math.log(high / low)
                return beta_low + weight * (beta_high - beta_low)
        last_scale, last_beta = known[-1]
        return last_beta + self.c * math.log(scale / last_scale)


@contextmanager
def sharpened(model: PreTrainedModel, beta: float) -> Iterator[None]:
    """Multiply every attention layer's softmax scale by beta; sdpa and eager attention honour it."""
    layers = [module for name, module in model.named_modules() if name.endswith("self_attn")]
    before = [layer.scaling for layer in layers]
    try:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling * beta
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling


class DroPE(Method):
    """A checkpoint recalibrated without positions, its softmax scaled by beta(s) at test time."""

    needs_checkpoint: ClassVar[bool] = True

    temperature: Temperature = Temperature()

    def model_overrides(self, base: Base, length: int) -> dict[str, Any]:
        return NoPE().model_overrides(base, length)

    @contextmanager
    def applied(self, model: PreTrainedModel, base: Base, length: int) -> Iterator[None]:
        with sharpened(model, self.temperature.beta(self.scale(base, length))):
            yield
