"""Parameters of a method by extension factor, as ``longctx-bench calibrate`` chose them on data that no test uses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from longctx_bench.core.specs import Spec

ObjectiveName = Literal["retrieval", "perplexity", "needle-loss"]
"""What parameters were chosen by: needles found, the loss of long text, the loss of needles' answers."""

_Scale = Annotated[float, Field(gt=1, allow_inf_nan=False)]


class TunedParameters(Spec):
    """Parameters by extension factor; within the training context a method keeps its own."""

    table: dict[_Scale, dict[str, Any]] = Field(min_length=1)
    """Parameters that were chosen at each scale; none where no others were better than the method's own."""
    objective: ObjectiveName

    def entry_at(self, scale: float) -> float | None:
        """Return the entry for an extension factor: the smallest that is not below it, else the largest.

        None up to the training context.
        """
        if scale <= 1:
            return None
        return min((entry for entry in self.table if entry >= scale), default=max(self.table))
