"""Parameters by sweep: the product of the values given, at each scale, on data that no test uses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from longctx_bench.analysis.calibration.calibrate import SAME_SCORE, store_fit
from longctx_bench.analysis.calibration.objectives import Objective
from longctx_bench.core import provenance
from longctx_bench.core.errors import UserError, did_you_mean
from longctx_bench.methods.base import BaseModelInfo, Method
from longctx_bench.models.metadata import TUNED_PARAMETERS
from longctx_bench.models.variant import ModelUnderTest

_FINAL_SHARE = 1 / 4
"""Share of the swept settings, the best of them, that is measured again with twice the examples."""
_SET_BY_CALIBRATION = frozenset({"calibration", "tuned_for", "tuned_parameters"})


@dataclass(frozen=True)
class Trial:
    """One setting tried at one scale."""

    scale: float
    parameters: dict[str, Any]
    """Empty for the method's own."""
    score: float
    n: int


@dataclass(frozen=True)
class ParameterSweep:
    """The result of a sweep."""

    table: dict[float, dict[str, Any]]
    """The best setting by scale; empty where none was better than the method's own."""
    trials: list[Trial]


def settings_to_try(method: Method, values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return the method's own setting, which is empty, and the product of the values of its parameters.

    Raises:
        UserError: a name is no parameter that can be swept, or a parameter cannot have one of its values.
    """
    known = type(method).model_fields.keys() - _SET_BY_CALIBRATION
    for name, options in values.items():
        if name not in known:
            raise UserError(f"--param {name}: {method.component_id()} has no such parameter{did_you_mean(name, known)}")
        if not options:
            raise UserError(f"--param {name}: names no value, such as {name}=2,4,8")
    settings: list[dict[str, Any]] = [{}]
    for options in itertools.product(*values.values()):
        checked = method.with_parameters(dict(zip(values, options, strict=True)), "--param")
        settings.append({name: getattr(checked, name) for name in values})
    return settings


def require_applicable(
    method: Method, base: BaseModelInfo, settings: Sequence[Mapping[str, Any]], scales: Sequence[float]
) -> None:
    """Check that each setting can be applied to the base model at each scale; reads no weights.

    Raises:
        UserError: one cannot, such as a window beyond the training context.
    """
    for setting in settings:
        for scale in scales:
            method.with_parameters(setting).model_overrides(base, round(scale * base.training_context))


def num_trials(settings: Sequence[Mapping[str, Any]], scales: Sequence[float]) -> int:
    """Return how many trials a sweep makes at most."""
    return len(scales) * (len(settings) + 1 + _num_finalists(settings))


def _num_finalists(settings: Sequence[Mapping[str, Any]]) -> int:
    """Return how many settings are measured again beside the method's own."""
    return math.ceil(_FINAL_SHARE * (len(settings) - 1))


def sweep_parameters(
    method: Method,
    base: BaseModelInfo,
    objective: Objective,
    settings: Sequence[dict[str, Any]],
    scales: Sequence[float],
    n: int,
    tell: Callable[[Trial], None],
) -> ParameterSweep:
    """Find the best setting of a method's parameters at each scale.

    All are measured with n examples of each kind; the best quarter and the method's own again with 2 n, which decides.
    Of equal ones the first is chosen, so that the method keeps its own parameters unless others are better.

    Args:
        method: whose parameters are swept.
        base: the checkpoint's properties.
        objective: what to maximise.
        settings: as :func:`settings_to_try` returns them.
        scales: extension factors, each above 1.
        n: examples of each kind.
        tell: called with every trial as soon as it is measured.

    Raises:
        UserError: a score is not finite, or all are 0.
    """
    table: dict[float, dict[str, Any]] = {}
    trials: list[Trial] = []
    for scale in scales:
        length = round(scale * base.training_context)

        def measure(setting: dict[str, Any], examples: int, scale: float = scale, length: int = length) -> Trial:
            score = objective.score(ModelUnderTest(base, method.with_parameters(setting), length), examples)
            if not math.isfinite(score):
                raise UserError(f"calibrate --param at {scale:g}x: a score is not finite; nothing is written")
            trials.append(Trial(scale, setting, score, examples))
            tell(trials[-1])
            return trials[-1]

        own_trial, *other_trials = [measure(setting, n) for setting in settings]
        table[scale] = {}
        if all(abs(trial.score - own_trial.score) <= SAME_SCORE for trial in other_trials):
            continue
        # Sorting is stable: of equal ones those given first.
        best = sorted(other_trials, key=lambda trial: -trial.score)[: _num_finalists(settings)]
        finals = [measure(trial.parameters, 2 * n) for trial in (own_trial, *best)]
        table[scale] = max(finals, key=lambda trial: trial.score).parameters
    if not any(trial.score for trial in trials):
        raise UserError(
            "calibrate --param: nothing found with any setting; nothing is written. Try more --limit, other values, or "
            "another --scale"
        )
    return ParameterSweep(table, trials)


def write_parameters(
    folder: Path, method: Method, method_name: str, objective: Objective, sweep: ParameterSweep
) -> Path:
    """Add what was chosen and what was tried to ``calibration.json``, where ``METHOD+tuned`` finds it.

    Raises:
        UserError: the folder cannot be written.
    """
    return store_fit(folder, (TUNED_PARAMETERS, method.component_id(), objective.name), {
        "method": method_name,
        "table": {f"{scale:g}": parameters for scale, parameters in sweep.table.items()},
        "data": objective.data,
        "made": {"at": provenance.now(), **provenance.environment()},
        "sweep": [asdict(trial) for trial in sweep.trials],
    })  # fmt: skip
