"""``longctx-bench calibrate``: tune a method's scalar, its parameters or its factors per scale."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from longctx_bench.analysis.calibration import HEAD_FIT_TASKS, RETRIEVAL_TASKS
from longctx_bench.cli.options import (
    engine_options,
    make_registry,
    parse_scales,
    parse_values,
    registry_options,
    writable,
)
from longctx_bench.cli.output import duration, say
from longctx_bench.core.errors import UserError
from longctx_bench.core.sanitize import describe_parameters

if TYPE_CHECKING:
    from longctx_bench.analysis.calibration.calibrate import SweepPoint
    from longctx_bench.analysis.calibration.search_factors import SearchPoint
    from longctx_bench.analysis.calibration.sweep_parameters import Trial


@click.command("calibrate")
@click.argument("model")
@click.option("--scale", default="2x,4x,8x", show_default=True, metavar="SCALES", help="Scales to calibrate at.")
@click.option(
    "--objective",
    default="retrieval",
    show_default=True,
    type=click.Choice(["retrieval", "perplexity"]),
    help="Maximize needle retrieval, or minimize perplexity on --text.",
)
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="Text for --objective perplexity: .txt, .jsonl or .parquet, optionally .xz.",
)
@click.option(
    "--per-head",
    is_flag=True,
    help="Fit one softmax temperature per attention head, by gradient descent on needle prompts (DroPE, NoPE, YaRN).",
)
@click.option(
    "--tasks",
    metavar="TASKS",
    help=f"Needle tasks to fit to (default: {RETRIEVAL_TASKS}; with --per-head {HEAD_FIT_TASKS}).",
)
@click.option(
    "--steps",
    default=80,
    show_default=True,
    type=click.IntRange(min=1),
    help="Steps of 8 prompts per scale, with --per-head.",
)
@click.option(
    "--param",
    "params",
    multiple=True,
    metavar="NAME=VALUES",
    help="Sweep a parameter of the method instead, over comma-separated values, e.g. group=2,4,8; may be repeated for "
    "all combinations. Runs of METHOD+tuned use the best.",
)
@click.option("--search", is_flag=True, help="Search LongRoPE's factors by evolution, on the loss of needles' answers.")
@click.option(
    "--population",
    default=64,
    show_default=True,
    type=click.IntRange(min=4),
    help="Factor lists in the first generation, with --search; half as many new ones in each later generation.",
)
@click.option(
    "--generations",
    default=40,
    show_default=True,
    type=click.IntRange(min=1),
    help="Generations after the first, with --search.",
)
@click.option(
    "--limit",
    default=33,
    show_default=True,
    type=click.IntRange(min=1),
    help="Examples of each kind per value in the coarse sweep, twice as many in the fine one; with --per-head, in the "
    "retrieval that chooses the interpolation; with --param, per combination, twice as many for the best; with "
    "--search, per factor list.",
)
@click.option(
    "--seed",
    default=42,
    show_default=True,
    help="Random seed of the calibration examples, which are disjoint from all test examples.",
)
@engine_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    callback=writable,
    help="Output folder (default: the checkpoint's).",
)
@registry_options
def calibrate_command(
    model: str, scale: str, objective: str, text: Path | None, per_head: bool, tasks: str | None,
    steps: int, params: tuple[str, ...], search: bool, population: int, generations: int, limit: int, seed: int,
    dtype: str, device: str, batch_tokens: int | None, out: Path | None, **options: tuple[str, ...],
) -> None:  # fmt: skip
    """Calibrate the tunable scalar of a MODEL's method per scale: DroPE's temperature, YaRN's attention factor.

    Writes calibration.json and a plot of the sweep to the checkpoint's folder, where runs find it. With --per-head the
    temperatures of all heads, which `calibration: heads` uses, and DroPE by default; with --param the best values of a
    method's parameters, which METHOD+tuned uses; with --search the factors of longrope.
    """
    values = parse_values(params)
    modes = [name for name, given in (("--per-head", per_head), ("--param", values), ("--search", search)) if given]
    if len(modes) > 1:
        raise UserError(f"{' and '.join(modes)}: calibrate does one of them at a time")
    if search and tasks is not None:
        raise UserError(f"--search fits {RETRIEVAL_TASKS}; leave --tasks out")
    if objective != "retrieval" and (per_head or search):
        raise UserError(f"{modes[0]} fits needle prompts; leave --objective out")
    common = {
        "model": model, "scale": scale, "limit": limit, "seed": seed, "dtype": dtype, "device": device,
        "batch_tokens": batch_tokens, "out": out, "registry": make_registry(**options),  # type: ignore[arg-type]
    }  # fmt: skip
    if per_head:
        _fit_heads(common, HEAD_FIT_TASKS if tasks is None else tasks, steps)
    elif values:
        _sweep({**common, "objective": objective, "text": text, "tasks": tasks}, values)
    elif search:
        _search(common, population, generations)
    else:
        _fit_scalar({**common, "objective": objective, "text": text, "tasks": tasks})


def _fit_scalar(options: dict[str, Any]) -> None:
    from longctx_bench.api.models import calibrate

    tunable = options["registry"].variant(options["model"]).method.tunable

    def tell(point: SweepPoint) -> None:
        say(f"{point.scale:g}x  {tunable} {point.value:.3f}  {options['objective']} {point.score:.4f}")

    result = calibrate(**options, tell=tell)
    for left_out, problem in result.fit.left_out.items():
        say(f"left out {left_out:g}x: {problem}")
    table = ", ".join(f"{s:g}x: {value:g}" for s, value in result.table.items())
    say(f"best {tunable}: {table}; law 1 + {result.fit.c:.3f} ln s")
    say(f"wrote {result.path}")


def _fit_heads(common: dict[str, Any], tasks: str, steps: int) -> None:
    from longctx_bench.analysis.calibration.fit_head_temperatures import FitPoint, InterpolationPoint
    from longctx_bench.api.models import calibrate_heads

    def tell(point: FitPoint | InterpolationPoint) -> None:
        if isinstance(point, InterpolationPoint):
            say(f"{point.scale:g}x  interpolation weight {point.weight:g}  retrieval {point.score:.4f}")
            return
        say(
            f"{point.scale:g}x  step {point.step}/{steps}  loss of answers {point.answer_loss:.4f}, of text "
            f"{point.text_loss:.4f}"
        )

    result = calibrate_heads(**common, tasks=tasks, steps=steps, tell=tell)
    _say_found(result.retrieval, result.path)


def _sweep(options: dict[str, Any], values: dict[str, list[Any]]) -> None:
    from longctx_bench.api.models import calibrate_parameters

    time_left = _TimeLeft()

    def tell(trial: Trial, max_trials: int) -> None:
        say(
            f"{trial.scale:g}x  {describe_parameters(trial.parameters)}  {options['objective']} {trial.score:.4f}  "
            f"n {trial.n}  {time_left.after_step(max_trials)}"
        )

    result = calibrate_parameters(**options, params=values, tell=tell)
    table = "; ".join(f"{scale:g}x: {describe_parameters(best)}" for scale, best in result.table.items())
    say(f"best parameters: {table}")
    say(f"wrote {result.path}")


def _search(common: dict[str, Any], population: int, generations: int) -> None:
    from longctx_bench.api.models import search_factors

    time_left = _TimeLeft()
    steps = (generations + 1) * len(parse_scales(common["scale"]))

    def tell(point: SearchPoint, max_lists: int) -> None:
        say(
            f"{point.scale:g}x  generation {point.generation}/{generations}  "
            f"lists {point.evaluations:,}/{max_lists:,}  loss of answers {point.loss:.4f}  "
            f"{time_left.after_step(steps)}"
        )

    result = search_factors(**common, population=population, generations=generations, tell=tell)
    _say_found(result.retrieval, result.path)


class _TimeLeft:
    """Estimates the time that is left from the steps that were made."""

    def __init__(self) -> None:
        self._started = perf_counter()
        self._steps = 0

    def after_step(self, total: int) -> str:
        """Count a step; return steps made, steps in all, and the time until the last of them."""
        self._steps += 1
        seconds_left = (perf_counter() - self._started) / self._steps * (total - self._steps)
        return f"({self._steps}/{total}, ETA {duration(seconds_left)})"


def _say_found(retrieval: Mapping[float, float], path: Path) -> None:
    shares = ", ".join(f"{scale:g}x: {100 * share:.1f} %" for scale, share in retrieval.items())
    say(f"needles found: {shares}")
    say(f"wrote {path}")
