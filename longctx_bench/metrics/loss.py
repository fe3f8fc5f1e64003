"""The loss of text under a model, which is a score without a scorer: the engine gives it."""

from __future__ import annotations

from collections.abc import Sequence

from longctx_bench.core.errors import UserError
from longctx_bench.metrics.base import Metric, never_final


def _not_text(text: str, references: Sequence[str], classes: Sequence[str] = ()) -> float:
    raise UserError("token_loss is measured by running a model, it cannot score text that was generated elsewhere")


LOSS_METRICS = (
    Metric(
        "token_loss",
        _not_text,
        never_final,
        is_rate=False,
        reference_implementation="mean next-token cross-entropy in nats",
        percent=False,
        higher_is_better=False,
    ),
)
