"""``longctx-bench calibrate``: tune a method's scalar per scale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from longctx_bench.analysis.calibration import HEAD_FIT_TASKS
from longctx_bench.cli.options import engine_options, make_registry, registry_options, writable
from longctx_bench.core.errors import UserError

if TYPE_CHECKING:
    from longctx_bench.analysis.calibration.calibrate import SweepPoint
    from longctx_bench.analysis.calibration.fit_head_temperatures import FitPoint


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
    default=HEAD_FIT_TASKS,
    show_default=True,
    metavar="TASKS",
    help="Needle tasks to fit the temperatures of heads to, with --per-head.",
)
@click.option(
    "--steps",
    default=80,
    show_default=True,
    type=click.IntRange(min=1),
    help="Steps of 8 prompts per scale, with --per-head.",
)
@click.option(
    "--limit",
    default=33,
    show_default=True,
    type=click.IntRange(min=1),
    help="Examples of each kind per value in the coarse sweep, twice as many in the fine one; with --per-head, in the "
    "final retrieval score.",
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
    model: str, scale: str, objective: str, text: Path | None, per_head: bool, tasks: str, steps: int, limit: int,
    seed: int, dtype: str, device: str, batch_tokens: int | None, out: Path | None, **options: tuple[str, ...],
) -> None:  # fmt: skip
    """Calibrate the tunable scalar of a MODEL's method per scale: DroPE's temperature, YaRN's attention factor.

    Writes calibration.json and a plot of the sweep to the checkpoint's folder, where runs find it. With --per-head the
    temperatures of all heads, which `calibration: heads` uses, and DroPE by default.
    """
    from rich.console import Console

    from longctx_bench.api.models import calibrate, calibrate_heads

    console = Console()
    registry = make_registry(**options)  # type: ignore[arg-type]
    if per_head:
        if objective != "retrieval":
            raise UserError("--per-head fits needle prompts; leave --objective out")

        def print_fit(point: FitPoint) -> None:
            console.print(
                f"{point.scale:g}x  step {point.step}/{steps}  loss of answers {point.answer_loss:.4f}, of text "
                f"{point.text_loss:.4f}",
                soft_wrap=True,
            )

        heads = calibrate_heads(
            model, scale, tasks, steps, limit, seed, dtype, device, batch_tokens, out, registry, print_fit
        )
        shares = ", ".join(f"{s:g}x: {100 * share:.1f} %" for s, share in heads.retrieval.items())
        console.print(f"needles found: {shares}\nwrote {heads.path}", markup=False, soft_wrap=True)
        return
    tunable = registry.variant(model).method.tunable

    def print_point(point: SweepPoint) -> None:
        console.print(f"{point.scale:g}x  {tunable} {point.value:.3f}  {objective} {point.score:.4f}")

    result = calibrate(
        model, scale, objective, text, limit, seed, dtype, device, batch_tokens, out, registry, print_point
    )
    table = ", ".join(f"{s:g}x: {value:g}" for s, value in result.table.items())
    console.print(
        f"best {tunable}: {table}; law 1 + {result.fit.c:.3f} ln s\nwrote {result.path}", markup=False, soft_wrap=True
    )
