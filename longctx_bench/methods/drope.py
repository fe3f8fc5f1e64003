"""DroPE: positions dropped, weights recalibrated, softmax sharpened with length (arXiv 2512.12167)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Self

from longctx_bench.methods.base import Base, Method
from longctx_bench.methods.rope import NoPE
from longctx_bench.methods.tuning import Calibration, Law

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def sharpened(model: PreTrainedModel, beta: float) -> Iterator[None]:
    """Multiply every attention layer's softmax scale by beta; sdpa and eager attention honour it."""
    layers: list[Any] = [module for name, module in model.named_modules() if name.endswith("self_attn")]
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

    checkpoint: ClassVar[str | None] = "drope"
    tunable: ClassVar[str | None] = "temperature"

    calibration: Calibration = "retrieval"
    """Which fit to take from the checkpoint's ``calibration.json``; the paper's law where there is none."""
    paper_c: float = 0.412
    """The paper's c: 0.412 for models trained from scratch, 0.103 for SmolLM."""
    temperature: Law | None = None
    """beta(s) itself; set by the calibration unless given here."""

    def calibrated(self, fits: Mapping[str, Any]) -> Self:
        if self.temperature is not None:
            return self
        law = Law(c=self.paper_c, source="paper")
        if self.calibration == "none":
            law = Law(source="none")
        elif self.calibration in fits:
            law = Law(**fits[self.calibration], source=self.calibration)
        return self.model_copy(update={"temperature": law})

    def tuned(self, value: float) -> Self:
        # A law without a slope holds the value at every length: the table's last entry is just above 1.
        return self.model_copy(update={"temperature": Law(table={1.0 + 1e-9: value})})

    def model_overrides(self, base: Base, length: int) -> dict[str, Any]:
        return NoPE().model_overrides(base, length)

    @contextmanager
    def applied(self, model: PreTrainedModel, base: Base, length: int) -> Iterator[None]:
        law = self.temperature or Law(c=self.paper_c)
        with sharpened(model, law.at(self.scale(base, length))):
            yield
