"""``longctx-bench calibrate``: sweep a method's scalar at each scale, keep the best value, fit 1 + c ln s."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from longctx_bench.analysis.calibration.objectives import Objective
from longctx_bench.core import provenance
from longctx_bench.core.errors import UserError
from longctx_bench.core.io import atomic_write, write_json
from longctx_bench.core.untrusted_files import read_object
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.methods.scalar_schedule import fit_slope
from longctx_bench.models.variant import ModelUnderTest

COARSE, FINE = 0.1, 0.025
"""Steps of the two sweeps. The optimum is narrow: a step of 0.15 can miss it."""

SAME_SCORE = 1e-9
"""Scores this close count as equal: sums in another order differ in their last digits."""


@dataclass(frozen=True)
class SweepPoint:
    """One value tried at one scale."""

    scale: float
    value: float
    score: float
    n: int


@dataclass(frozen=True)
class CalibrationResult:
    """The result of a calibration."""

    table: dict[float, float]
    """Best value by scale."""
    c: float
    """Of 1 + c ln s, by least squares over the table."""
    sweep: list[SweepPoint]
    left_out: dict[float, str] = field(default_factory=dict)
    """Scales without a best value, with the reason."""


def calibrate(
    method: Method,
    base: BaseModelInfo,
    objective: Objective,
    scales: Sequence[float],
    n: int,
    tell: Callable[[SweepPoint], None],
) -> CalibrationResult:
    """Find the best value of a method's tunable scalar at each scale.

    A coarse sweep over [1, 1 + span ln s], or [1, 1 + reach] where that is more, with n examples finds the region,
    a fine one around it with 2 n decides. Scores are smoothed over neighbouring values before the maximum is taken, so
    that a single lucky value does not win.

    Args:
        method: one with a tunable scalar.
        base: the checkpoint's properties.
        objective: what to maximise.
        scales: extension factors, each above 1.
        n: examples of each kind per value.
        tell: called with every point as soon as it is measured.

    Raises:
        UserError: at none of the scales does a value score better than another.
    """
    table, sweep, left_out = {}, [], {}
    for scale in scales:
        length = round(scale * base.training_context)

        def measure(value: float, examples: int, scale: float = scale, length: int = length) -> SweepPoint:
            score = objective.score(ModelUnderTest(base, method.with_scalar(value), length), examples)
            point = SweepPoint(scale, value, score, examples)
            tell(point)
            return point

        steps = max(2, math.ceil(max(method.tunable_reach, method.tunable_span * math.log(scale)) / COARSE))
        coarse = [measure(round(1 + COARSE * step, 4), n) for step in range(steps + 1)]
        try:
            _require_maximum(coarse, coarse, objective.name)
            centre = best_value(coarse)
            values = [round(centre + FINE * step, 4) for step in range(-3, 4)]
            fine = [measure(value, 2 * n) for value in values if value >= 1]
            _require_maximum(fine, coarse, objective.name)
        except _NoMaximumError as error:
            left_out[scale] = str(error)
            continue
        table[scale] = best_value(fine)
        sweep += coarse + fine
    if not table:
        scale, problem = next(iter(left_out.items()))
        other_objective = "perplexity" if objective.name == "retrieval" else "retrieval"
        raise UserError(
            f"calibrate at {scale:g}x: {problem}; nothing is written. Try more --limit, --objective {other_objective}, "
            f"or another --scale"
        )
    return CalibrationResult(table, fit_slope(table), sweep, left_out)


class _NoMaximumError(Exception):
    """A sweep at one scale has no best value; the message says why."""


def _require_maximum(points: Sequence[SweepPoint], coarse: Sequence[SweepPoint], objective: str) -> None:
    """Reject a sweep whose scores are all equal: the middle value would be stored as the best.

    Equal scores are a result where the coarse sweep has worse ones: a plateau, whose middle is the choice.

    Raises:
        _NoMaximumError: all scores are equal, or one is not finite.
    """
    scores = [point.score for point in points]
    if not all(map(math.isfinite, scores)):
        problem = "a score is not finite"
    elif max(scores) - min(scores) > SAME_SCORE or min(scores) - min(point.score for point in coarse) > SAME_SCORE:
        return
    else:
        reason = "no value is better than another" if any(scores) else "nothing found at any value"
        problem = f"{reason}: {objective} is {scores[0]:.4g} at all {len(scores)}"
    values = [point.value for point in points]
    raise _NoMaximumError(f"{problem}, from {min(values):g} to {max(values):g}")


def best_value(points: Sequence[SweepPoint]) -> float:
    """Return the value with the best score after averaging each with its neighbours (weights 1, 2, 1)."""
    scores = [point.score for point in points]
    padded = [scores[0], *scores, scores[-1]]
    smooth = [(padded[i] + 2 * padded[i + 1] + padded[i + 2]) / 4 for i in range(len(scores))]
    top = max(smooth)
    # Of several equally good values, the middle one is the farthest from both edges of the plateau.
    tied = [point.value for point, score in zip(points, smooth, strict=True) if score >= top - SAME_SCORE]
    return tied[len(tied) // 2]


def write_calibration(
    folder: Path, method: Method, method_name: str, objective: Objective, result: CalibrationResult
) -> Path:
    """Add a result to ``calibration.json`` in a checkpoint's folder and plot its sweep next to it.

    Raises:
        UserError: the folder cannot be written.
    """
    assert method.tunable is not None
    path = store_fit(folder, (method.tunable, objective.name), {
        "method": method_name,
        "c": round(result.c, 4),
        "table": {f"{scale:g}": value for scale, value in result.table.items()},
        "data": objective.data,
        "made": {"at": provenance.now(), **provenance.environment()},
        "sweep": [asdict(point) for point in result.sweep],
    })  # fmt: skip
    _plot_sweep(folder / f"calibration-{method.tunable}-{objective.name}.png", method, objective, result)
    return path


def store_fit(folder: Path, keys: Sequence[str], fit: Mapping[str, Any]) -> Path:
    """Add a fit to ``calibration.json`` in a folder of weights, where runs find it.

    Args:
        folder: of the weights.
        keys: where in the file: the scalar that was fitted, or ``parameters`` and the method's id; last the name of the
            fit, as the method's ``calibration`` or ``tuned_for`` has it.
        fit: what was found, and how.

    Raises:
        UserError: the folder cannot be written, or its ``calibration.json`` is not a calibration.
    """
    path = folder / "calibration.json"
    calibrations: dict[str, Any] = read_object(path) or {}
    section = calibrations
    for key in keys[:-1]:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UserError(f"{path}: not a calibration ('{key}' is not an object); move it away")
    section[keys[-1]] = fit
    write_json(path, calibrations)
    return path


def _plot_sweep(path: Path, method: Method, objective: Objective, result: CalibrationResult) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    shades = plt.get_cmap("viridis")
    for index, scale in enumerate(result.table):
        points = sorted((p for p in result.sweep if p.scale == scale), key=lambda p: (p.value, p.n))
        colour = shades(index / max(1, len(result.table) - 1) * 0.85)
        axis.plot([p.value for p in points], [p.score for p in points], ".-", color=colour, label=f"{scale:g}x")
        axis.axvline(result.table[scale], color=colour, linewidth=0.8, linestyle="--")
    axis.set_xlabel((method.tunable or "").replace("_", " "))
    axis.set_ylabel("retrieval (share found)" if objective.name == "retrieval" else "log-likelihood (nats per token)")
    axis.legend(title="length")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=160)
    plt.close(figure)
