"""Scalar schedules: a tunable scalar (softmax temperature, YaRN attention factor) by extension factor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

from longctx_bench.core.errors import UserError
from longctx_bench.core.specs import Spec, validate
from longctx_bench.methods.head_temperatures import HeadTemperatures

Calibration = Literal["auto", "none", "paper", "perplexity", "retrieval", "heads"]
"""Where a scalar comes from: ``none`` (not applied), the paper's coefficient, or our fit for that objective; ``heads``
is a temperature of its own for each attention head."""


_PREFERRED: tuple[Calibration, ...] = ("heads", "retrieval")

_Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Value = Annotated[float, Field(allow_inf_nan=False)]


class ScalarSchedule(Spec):
    """A scalar that is 1 up to the training context: interpolated in a fitted table, extrapolated as 1 + c ln s."""

    c: float = Field(default=0.0, allow_inf_nan=False)
    table: dict[_Scale, _Value] = Field(default_factory=dict)
    """Value by extension factor: interpolated in ln s between entries, extrapolated with slope ``c`` after the last."""
    source: Calibration | Literal["user"] = "user"

    def at(self, scale: float) -> float:
        """Return the value at extension factor ``scale``; 1 up to the training context."""
        if scale <= 1.0:
            return 1.0
        points = sorted({1.0: 1.0, **self.table}.items())
        for (low, value_low), (high, value_high) in pairwise(points):
            if low <= scale <= high:
                weight = math.log(scale / low) / math.log(high / low)
                return value_low + weight * (value_high - value_low)
        last_scale, last_value = points[-1]
        return last_value + self.c * math.log(scale / last_scale)


def fitted_schedule(
    calibration: Calibration, fits: Mapping[str, Any], paper: ScalarSchedule | None
) -> ScalarSchedule | HeadTemperatures | None:
    """Return the schedule for a ``calibration`` setting.

    Args:
        calibration: the setting.
        fits: schedules from the checkpoint's ``calibration.json``, by objective.
        paper: the method's own schedule.

    Returns:
        ``paper``, one of the fits, or None where no scalar is applied.

    Raises:
        UserError: the fit is missing from ``calibration.json`` or invalid.
    """
    if calibration == "none":
        return None
    if calibration == "auto":
        calibration = next((fit for fit in _PREFERRED if fit in fits), "paper")
    if calibration == "paper":
        return paper
    if calibration not in fits:
        option = "--per-head" if calibration == "heads" else f"--objective {calibration}"
        raise UserError(
            f"the checkpoint has no {calibration} calibration; make one with `longctx-bench calibrate MODEL {option}`"
        )
    if calibration == "heads":
        return validate(HeadTemperatures, {"table": fits["heads"]["table"]}, "calibration.json: heads")
    return validate(ScalarSchedule, {**fits[calibration], "source": calibration}, f"calibration.json: {calibration}")


def may_be_by_head(calibration: Calibration, schedule: ScalarSchedule | HeadTemperatures | None) -> bool:
    """Whether a method has temperatures by head, or may get them from a calibration that is not read yet."""
    if schedule is not None:
        return isinstance(schedule, HeadTemperatures)
    return calibration in ("auto", "heads")


def fit_slope(table: dict[float, float]) -> float:
    """Return the least-squares c of 1 + c ln s for a table of values by scale s."""
    logs = [math.log(scale) for scale in table if scale > 1]
    rises = [value - 1 for scale, value in table.items() if scale > 1]
    squares = sum(log * log for log in logs)
    return sum(log * rise for log, rise in zip(logs, rises, strict=True)) / squares if squares else 0.0
