"""DroPE: drop positions, recalibrate the weights, scale the softmax with length (arXiv 2512.12167)."""

from __future__ import annotations

from typing import ClassVar

from longctx_bench.methods.nope import NoPE
from longctx_bench.methods.scalar_schedule import Calibration


class DroPE(NoPE):
    """A checkpoint recalibrated without positions, its softmax scaled by beta(s) at test time."""

    id: ClassVar[str] = "drope"
    checkpoint: ClassVar[str | None] = "drope"
    needs_checkpoint: ClassVar[bool] = True

    calibration: Calibration = "auto"
    """As for NoPE; by default temperatures by head if the checkpoint has them, else our retrieval fit, else the paper's
    formula."""
