"""A tunable scalar as a function of the extension factor: the softmax temperature, YaRN's attention factor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Spec, validate

Calibration = Literal["auto", "none", "paper", "perplexity", "retrieval"]
"""Where a scalar comes from: not used, the paper's coefficient, or a fit of ours by that objective."""


_Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Value = Annotated[float, Field(allow_inf_nan=False)]


class ScalarSchedule(Spec):
    """A scalar that is 1 at the training context: a table where it was fitted, the law 1 + c ln s beyond."""

    c: float = Field(default=0.0, allow_inf_nan=False)
    table: dict[_Scale, _Value] = Field(default_factory=dict)
    """Value by extension factor; between two entries it is interpolated in ln s, beyond the last the law goes on."""
    source: Calibration | Literal["user"] = "user"

    def at(self, scale: float) -> float:
        """Return the value at extension factor ``scale``; 1 up to the training context."""
        if scale <= 1.0:
            return 1.0
        known = sorted({1.0: 1.0, **self.table}.items())
        for (low, value_low), (high, value_high) in pairwise(known):
            if low <= scale <= high:
                weight = math.log(scale / low) / math.log(high / low)
                return value_low + weight * (value_high - value_low)
        last_scale, last_value = known[-1]
        return last_value + self.c * math.log(scale / last_scale)


def fitted_schedule(
    wanted: Calibration, fits: Mapping[str, Any], paper: ScalarSchedule | None
) -> ScalarSchedule | None:
    """Return the law that a calibration names; ``paper`` where it names the method's own, None where it names none.

    Raises:
        UserError: it names a fit, and none lies beside the weights, or one that is no law.
    """
    if wanted == "none":
        return None
    if wanted == "auto":
        wanted = "retrieval" if "retrieval" in fits else "paper"
    if wanted == "paper":
        return paper
    if wanted not in fits:
        raise UserError(
            f"no {wanted} calibration lies beside the weights; make one with `longctx-bench calibrate MODEL "
            f"--objective {wanted}`"
        )
    return validate(ScalarSchedule, {**fits[wanted], "source": wanted}, f"calibration.json: {wanted}")


def fit_law(table: dict[float, float]) -> float:
    """Return the c of 1 + c ln s nearest to a table's values by least squares."""
    logs = [math.log(scale) for scale in table if scale > 1]
    rises = [value - 1 for scale, value in table.items() if scale > 1]
    squares = sum(log * log for log in logs)
    return sum(log * rise for log, rise in zip(logs, rises, strict=True)) / squares if squares else 0.0
