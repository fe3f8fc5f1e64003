"""``longctx-bench calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from longctx_bench.cli.options import engine_options, make_registry, registry_options, writable

if TYPE_CHECKING:
    from longctx_bench.analysis.calibration.calibrate import SweepPoint


@click.command("calibrate")
@click.argument("model")
@click.option("--scale", default="2x,4x,8x", show_default=True, metavar="SCALES", help="Extension factors to fit at.")
@click.option(
    "--objective",
    default="retrieval",
    show_default=True,
    type=click.Choice(["retrieval", "perplexity"]),
    help="Find needles, or predict long text.",
)
@click.option("--text", type=click.Path(path_type=Path), help="Text for perplexity: .txt, .jsonl or parquet, .xz too.")
@click.option(
    "--limit",
    default=33,
    show_default=True,
    type=click.IntRange(min=1),
    help="Examples of each kind a value in the coarse sweep; twice as many in the fine one.",
)
@click.option("--seed", default=42, show_default=True, help="Of the calibration's examples, none of which is a test's.")
@engine_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    callback=writable,
    help="Folder to write to instead of the checkpoint's own.",
)
@registry_options
def calibrate_command(
    model: str, scale: str, objective: str, text: Path | None, limit: int, seed: int, dtype: str, device: str,
    batch_tokens: int | None, out: Path | None, **options: tuple[str, ...],
) -> None:  # fmt: skip
    """Fit the tunable scalar of a MODEL's method at each scale: DroPE's temperature, YaRN's attention factor.

    Writes calibration.json and a plot of the sweep beside the checkpoint, where runs find it.
    """
    from rich.console import Console

    from longctx_bench.api.models import calibrate

    console = Console()
    registry = make_registry(**options)  # type: ignore[arg-type]
    tunable = registry.variant(model).method.tunable

    def tell(point: SweepPoint) -> None:
        console.print(f"{point.scale:g}x  {tunable} {point.value:.3f}  {objective} {point.score:.4f}")

    found = calibrate(model, scale, objective, text, limit, seed, dtype, device, batch_tokens, out, registry, tell)
    table = ", ".join(f"{s:g}x: {value:g}" for s, value in found.table.items())
    console.print(
        f"best {tunable}: {table}; law 1 + {found.fit.c:.3f} ln s\nwrote {found.path}", markup=False, soft_wrap=True
    )
