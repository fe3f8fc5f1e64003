"""``longctx-bench calibrate``: sweep the scalar at each scale, keep the best, fit the law, write it down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
"""Steps of the two sweeps: the right value is sharp, a step of 0.15 can miss it altogether."""

_EQUAL = 1e-9
"""Scores that are no further apart are equal: sums in another order differ in their last digits."""


@dataclass(frozen=True)
class Point:
    """One value tried at one scale."""

    scale: float
    value: float
    score: float
    n: int


@dataclass(frozen=True)
class Fit:
    """What a calibration found."""

    table: dict[float, float]
    """Best value by scale."""
    c: float
    """Of 1 + c ln s, by least squares over the table."""
    sweep: list[Point]


def calibrate(
    method: Method,
    base: BaseModelInfo,
    objective: Objective,
    scales: Sequence[float],
    n: int,
    tell: Callable[[Point], None],
) -> Fit:
    """Find the best value of a method's tunable scalar at each scale.

    A coarse sweep over [1, 1 + span ln s], or [1, 1 + reach] where that is more, with n examples finds the region,
    a fine one around it with 2 n decides. Scores are averaged with their neighbours' before the best is taken: one
    lucky value does not win.

    Args:
        method: one with a tunable scalar.
        base: the checkpoint's facts.
        objective: what to maximise.
        scales: extension factors, each above 1.
        n: examples of each kind a value.
        tell: called with every point as it is measured.

    Raises:
        UserError: at one of the scales no value is better than another, so that there is nothing to choose by.
    """
    table, sweep = {}, []
    for scale in scales:
        length = round(scale * base.training_context)

        def measure(value: float, examples: int, scale: float = scale, length: int = length) -> Point:
            score = objective.score(ModelUnderTest(base, method.with_scalar(value), length), examples)
            point = Point(scale, value, score, examples)
            tell(point)
            return point

        steps = max(2, math.ceil(max(method.tunable_reach, method.tunable_span * math.log(scale)) / COARSE))
        coarse = [measure(round(1 + COARSE * step, 4), n) for step in range(steps + 1)]
        _require_a_best(coarse, coarse, scale, objective.name)
        centre = best(coarse)
        fine = [
            measure(round(centre + FINE * step, 4), 2 * n) for step in range(-3, 4) if centre + FINE * step >= 1 - 1e-9
        ]
        _require_a_best(fine, coarse, scale, objective.name)
        table[scale] = best(fine)
        sweep += coarse + fine
    return Fit(table, fit_slope(table), sweep)


def _require_a_best(points: Sequence[Point], coarse: Sequence[Point], scale: float, objective: str) -> None:
    """Refuse a sweep whose values are all equal: the middle of them would be written down as the best.

    Equal scores are a result where the coarse sweep has worse ones: a plateau, whose middle is the choice.

    Raises:
        UserError: nothing was found at any value.
    """
    scores = [point.score for point in points]
    if not all(map(math.isfinite, scores)):
        what = "a score is no finite number"
    elif max(scores) - min(scores) > _EQUAL or min(scores) - min(point.score for point in coarse) > _EQUAL:
        return
    else:
        why = "no value is better than another" if any(scores) else "nothing found at any value"
        what = f"{why}: {objective} is {scores[0]:.4g} at all {len(scores)}"
    values = [point.value for point in points]
    other = "perplexity" if objective == "retrieval" else "retrieval"
    raise UserError(
        f"calibrate at {scale:g}x: {what}, from {min(values):g} to {max(values):g}; nothing is written. Try more "
        f"--limit, --objective {other}, or another --scale"
    )


def best(points: Sequence[Point]) -> float:
    """Return the value with the best score after averaging each with its neighbours (weights 1, 2, 1)."""
    scores = [point.score for point in points]
    padded = [scores[0], *scores, scores[-1]]
    smooth = [(padded[i] + 2 * padded[i + 1] + padded[i + 2]) / 4 for i in range(len(scores))]
    top = max(smooth)
    # Where several are equally good, the middle of them is the farthest from both cliffs.
    equal = [point.value for point, score in zip(points, smooth, strict=True) if score >= top - _EQUAL]
    return equal[len(equal) // 2]


def write(folder: Path, method: Method, method_name: str, objective: Objective, fit: Fit) -> Path:
    """Add a fit to ``calibration.json`` in a checkpoint's folder, and draw its sweep beside it.

    Raises:
        UserError: the folder cannot be written.
    """
    path = folder / "calibration.json"
    found: dict[str, Any] = read_object(path) or {}
    assert method.tunable is not None
    found.setdefault(method.tunable, {})[objective.name] = {
        "method": method_name,
        "c": round(fit.c, 4),
        "table": {f"{scale:g}": value for scale, value in fit.table.items()},
        "data": objective.data,
        "made": {"at": provenance.now(), **provenance.environment()},
        "sweep": [asdict(point) for point in fit.sweep],
    }
    write_json(path, found)
    _draw(folder / f"calibration-{method.tunable}-{objective.name}.png", method, objective, fit)
    return path


def _draw(path: Path, method: Method, objective: Objective, fit: Fit) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3.2), layout="constrained")
    shades = plt.get_cmap("viridis")
    for place, scale in enumerate(fit.table):
        points = sorted((p for p in fit.sweep if p.scale == scale), key=lambda p: (p.value, p.n))
        colour = shades(place / max(1, len(fit.table) - 1) * 0.85)
        axis.plot([p.value for p in points], [p.score for p in points], ".-", color=colour, label=f"{scale:g}x")
        axis.axvline(fit.table[scale], color=colour, linewidth=0.8, linestyle="--")
    axis.set_xlabel((method.tunable or "").replace("_", " "))
    axis.set_ylabel("retrieval (share found)" if objective.name == "retrieval" else "log-likelihood (nats a token)")
    axis.legend(title="length")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=160)
    plt.close(figure)
